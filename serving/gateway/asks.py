"""What a client asks, read and checked as far as the gateway has to know it; vLLM checks the rest."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Literal

import orjson

from serving.gateway.errors import bad_request, no_model
from serving.gateway.traceparent import TraceParent

Route = Literal["chat", "completions"]
PATHS: dict[Route, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
_NAME_CHARACTERS = 200


@dataclass(slots=True)
class Ask:
    """One question on its way."""

    route: Route
    tenant: str
    body: dict[str, Any]
    """What is sent to a replica, without what is the gateway's own."""
    stream: bool
    wants_usage: bool
    conversation: str | None
    user: str | None
    knowledge: bool | None
    """None leaves it to the settings."""
    may_read_cache: bool
    may_fill_cache: bool
    request_id: str
    trace: TraceParent
    owner: str
    """By what a rollout splits: the conversation, else the user, else how the client's words begin."""
    began_s: float = field(default_factory=monotonic)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Of a chat; a completion has none."""
        found: list[dict[str, Any]] = self.body.get("messages", [])
        return found

    @property
    def prefix(self) -> int:
        """The same for bodies that begin alike, as they are now: with history and passages."""
        return _beginning(self.body)


def parse(
    route: Route,
    raw: bytes,
    *,
    tenant: str,
    model: str,
    request_id: str,
    trace: TraceParent,
    cache_control: str = "",
) -> Ask:
    """Read a body.

    Raises:  ApiError: 400 or 404, in OpenAI's form.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"The body is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise bad_request("The body must be a JSON object.")
    asked = body.setdefault("model", model)
    if asked != model:
        raise no_model(asked, model)
    if route == "chat":
        _check_messages(body.get("messages"))
    elif not body.get("prompt"):
        raise bad_request("'prompt' is missing or empty.", "prompt")
    stream = _flag(body, "stream")
    options = body.get("stream_options") if stream else None
    if options is not None and not isinstance(options, dict):
        raise bad_request("'stream_options' must be an object.", "stream_options")
    conversation = _name(body.pop("conversation", None), "conversation")
    if conversation and route != "chat":
        raise bad_request("Only chats have a conversation.", "conversation")
    knowledge = body.pop("knowledge", None)
    if knowledge is not None and not isinstance(knowledge, bool):
        raise bad_request("'knowledge' must be true or false.", "knowledge")
    if stream:
        body["stream_options"] = {**(options or {}), "include_usage": True}
    user = _name(body.get("user"), "user")
    return Ask(
        route=route,
        tenant=tenant,
        body=body,
        stream=stream,
        wants_usage=bool(options and options.get("include_usage")),
        conversation=conversation,
        user=user,
        knowledge=knowledge,
        may_read_cache="no-cache" not in cache_control and "no-store" not in cache_control,
        may_fill_cache="no-store" not in cache_control,
        request_id=request_id,
        trace=trace,
        owner=f"{tenant}/{conversation or user or _beginning(body)}",
    )


def _beginning(body: Mapping[str, Any]) -> int:
    """A number of the first message, or of the prompt."""
    messages = body.get("messages")
    first = messages[0].get("content") if messages else body.get("prompt")
    return zlib.crc32(orjson.dumps(first))


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise bad_request("'messages' must be a list with at least one message.", "messages")
    for at, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise bad_request(f"'messages[{at}]' must be an object with a role.", "messages")


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad_request(f"'{name}' must be true or false.", name)
    return bool(value)


def _name(value: Any, name: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= _NAME_CHARACTERS:
        raise bad_request(f"'{name}' must be a text of 1 to {_NAME_CHARACTERS} characters.", name)
    return value
