"""The description of the gateway's HTTP API, for clients that read one."""

from __future__ import annotations

from typing import Any

from serving.gateway.settings import Settings

_JSON = "application/json"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}
_NAME = {"type": "string", "minLength": 1, "maxLength": 200}
_SAMPLING = {
    "max_tokens": {"type": "integer", "minimum": 1},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "stop": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    "seed": {"type": "integer"},
    "stream": {"type": "boolean", "description": "Server-sent events, one for each piece."},
    "stream_options": {
        "type": "object",
        "properties": {"include_usage": {"type": "boolean"}},
    },
    "user": _NAME | {"description": "Who asks, by a name of yours."},
}
_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["system", "user", "assistant"]},
        "content": {"type": "string"},
    },
}


def description(settings: Settings) -> dict[str, Any]:
    """OpenAPI 3.1. Fields that are not named here go to vLLM as they are."""
    chat = {
        "type": "object",
        "required": ["messages"],
        "properties": {
            "model": {"const": settings.model},
            "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
            "conversation": _NAME
            | {"description": "Turns of the same name are put before the messages."},
            "knowledge": {"type": "boolean", "description": "Look passages up and cite them."},
            **_SAMPLING,
        },
    }
    completion = {
        "type": "object",
        "required": ["prompt"],
        "properties": {
            "model": {"const": settings.model},
            "prompt": {"type": "string", "minLength": 1},
            **_SAMPLING,
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Chat gateway", "version": "1"},
        "security": [{"key": []}],
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _ERROR},
        },
        "paths": {
            "/v1/chat/completions": {"post": _asked("Answer a chat", chat)},
            "/v1/completions": {"post": _asked("Go on with a text", completion)},
            "/v1/models": {"get": _got("The model", _JSON, key=True)},
            "/v1/models/{model}": {
                "parameters": [_path("model")],
                "get": _got("The model", _JSON, key=True, also=(404,)),
            },
            "/v1/conversations/{id}": {
                "parameters": [_path("id")],
                "delete": {
                    "summary": "Forget a conversation",
                    "responses": {"204": {"description": "Forgotten"}, **_errors(401)},
                },
            },
            "/healthz": {"get": _got("Alive", _JSON)},
            "/readyz": {"get": _got("Takes requests", _JSON) | _not_ready()},
            "/metrics": {"get": _got("For Prometheus", "text/plain")},
        },
    }


def _asked(summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    answer = {_JSON: {"schema": {"type": "object"}}, "text/event-stream": {}}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {_JSON: {"schema": schema}}},
        "responses": {
            "200": {"description": "The answer", "content": answer},
            **_errors(400, 401, 404, 413, 422, 429, 500, 502, 503, 504),
        },
    }


def _got(
    summary: str, kind: str, *, key: bool = False, also: tuple[int, ...] = ()
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": summary, "content": {kind: {}}},
            **_errors(*(401,) * key, *also),
        },
    }
    return found if key else found | {"security": []}


def _not_ready() -> dict[str, Any]:
    return {
        "responses": {
            "200": {"description": "Ready", "content": {_JSON: {}}},
            "503": {"description": "Not ready", "content": {_JSON: {}}},
        }
    }


def _errors(*statuses: int) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    content = {_JSON: {"schema": schema}}
    return {str(status): {"description": "No answer", "content": content} for status in statuses}


def _path(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
    }
