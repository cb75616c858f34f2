"""The gateway over HTTP: OpenAI's API, probes, metrics, the chat page."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from importlib.resources import files

import orjson
from aiohttp import web

from serving.gateway import asks
from serving.gateway.asks import Route
from serving.gateway.chat import Chat
from serving.gateway.errors import ApiError, bad_request, no_model
from serving.gateway.fleet import Fleet
from serving.gateway.keys import Keys
from serving.gateway.logger import logger
from serving.gateway.metrics import Metrics
from serving.gateway.openapi import description
from serving.gateway.settings import Settings
from serving.gateway.traceparent import TraceParent
from serving.gateway.websocket import Sockets

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_JSON = "application/json"
_ID = web.RequestKey("id", str)


class _Stream(web.StreamResponse):
    """Its head leaves with its first piece: each write is a system call, and wakes the client."""

    _send_headers_immediately = False


class Api:
    """The routes, and what they need."""

    def __init__(
        self,
        settings: Settings,
        chat: Chat,
        fleet: Fleet,
        keys: Keys,
        metrics: Metrics,
        stable: Callable[[], str],
    ) -> None:
        self._settings = settings
        self._chat = chat
        self._fleet = fleet
        self._keys = keys
        self._metrics = metrics
        self._stable = stable
        self._page = files("serving.gateway").joinpath("page", "chat.html").read_bytes()
        self.draining = False
        self.sockets = Sockets(settings, chat, keys, metrics)

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(
            client_max_size=self._settings.limits.body_bytes, middlewares=[_answers_errors]
        )
        app.router.add_post("/v1/chat/completions", self._completions("chat"))
        app.router.add_post("/v1/completions", self._completions("completions"))
        app.router.add_get("/v1/chat/ws", self.sockets.handle)
        app.router.add_delete("/v1/conversations/{id}", self._forget)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{model}", self._model)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics_text)
        app.router.add_get("/openapi.json", self._openapi)
        app.router.add_get("/", self._chat_page)
        return app

    def _completions(self, route: Route) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._complete(request, route)

        return handle

    async def _complete(self, request: web.Request, route: Route) -> web.StreamResponse:
        headers = request.headers
        request_id = headers.get("X-Request-Id", "")[:128] or f"req-{secrets.token_hex(12)}"
        request[_ID] = request_id
        tenant = self._keys.tenant(headers.get("Authorization"))
        ask = asks.parse(
            route,
            await _body(request, self._settings.limits.body_bytes),
            tenant=tenant,
            model=self._settings.model,
            request_id=request_id,
            trace=TraceParent.serve(headers.get("traceparent")),
            cache_control=headers.get("Cache-Control", ""),
        )
        reply = await self._chat.reply(ask)
        reply.headers["X-Request-Id"] = request_id
        if reply.events is None:
            return web.Response(
                status=reply.status,
                body=reply.whole,
                headers=reply.headers | {"Content-Type": reply.content_type},
            )
        # Proxies that buffer would hold the tokens back.
        told = {"Content-Type": reply.content_type, "Cache-Control": "no-cache"}
        response = _Stream(headers=reply.headers | told | {"X-Accel-Buffering": "no"})
        async with aclosing(reply.events) as events:
            # Begun before anything can fail, since only what has begun is also ended.
            async for piece, is_last in events:
                await response.prepare(request)
                await (response.write_eof if is_last else response.write)(piece)
        await response.write_eof()
        return response

    async def _forget(self, request: web.Request) -> web.Response:
        tenant = self._keys.tenant(request.headers.get("Authorization"))
        await self._chat.forget(tenant, request.match_info["id"])
        return web.Response(status=204)

    async def _models(self, request: web.Request) -> web.Response:
        self._keys.tenant(request.headers.get("Authorization"))
        return _json({"object": "list", "data": [self._card()]})

    async def _model(self, request: web.Request) -> web.Response:
        self._keys.tenant(request.headers.get("Authorization"))
        name = request.match_info["model"]
        if name != self._settings.model:
            raise no_model(name, self._settings.model)
        return _json(self._card())

    def _card(self) -> dict[str, object]:
        return {"id": self._settings.model, "object": "model", "created": 0, "owned_by": "vllm"}

    async def _healthz(self, request: web.Request) -> web.Response:
        """Alive; asks nobody, so that no other failure restarts the gateway."""
        return _json({"status": "ok"})

    async def _readyz(self, request: web.Request) -> web.Response:
        """Takes requests: not draining, and a replica of the stable track is warm."""
        ready = self._fleet.ready(self._stable())
        if self.draining or not ready:
            reason = "draining" if self.draining else "no replica is warm"
            return _json({"status": "not ready", "reason": reason}, status=503)
        return _json({"status": "ready", "replicas": ready})

    async def _metrics_text(self, request: web.Request) -> web.Response:
        return web.Response(
            body=self._metrics.text(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _openapi(self, request: web.Request) -> web.Response:
        return _json(description(self._settings))

    async def _chat_page(self, request: web.Request) -> web.Response:
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
        policy += " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
        policy += " frame-ancestors 'none'"
        return web.Response(
            body=self._page,
            headers={
                "Content-Type": "text/html; charset=utf-8",
                "Content-Security-Policy": policy,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
            },
        )


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), headers={"Content-Type": _JSON})


async def _body(request: web.Request, limit: int) -> bytes:
    if request.content_length is not None and request.content_length > limit:
        raise _too_large(limit)
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(limit) from None
    except (ValueError, OSError) as error:
        raise bad_request(f"The body cannot be read: {error}.") from error


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"The body is larger than {limit} bytes.",
        kind="invalid_request_error",
        code="request_too_large",
    )


@web.middleware
async def _answers_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error in OpenAI's form."""
    try:
        return await handler(request)
    except ApiError as error:
        failed = error
    except web.HTTPException as error:
        failed = ApiError(
            error.status,
            f"{error.reason}: {request.method} {request.path}",
            kind="invalid_request_error",
        )
        failed_headers = {k: v for k, v in error.headers.items() if k == "Allow"}
        return _failed(failed, request, failed_headers)
    except Exception:
        logger().exception("a request failed in the gateway", path=request.path)
        failed = ApiError(500, "The gateway failed.", kind="server_error", code="internal")
    return _failed(failed, request, {})


def _failed(error: ApiError, request: web.Request, headers: dict[str, str]) -> web.Response:
    told = {"Content-Type": _JSON, "X-Request-Id": request.get(_ID, ""), **error.headers}
    return web.Response(status=error.status, body=error.body, headers=told | headers)
