"""The chat over a WebSocket: JSON both ways, one answer at a time.

    client  {"type": "auth", "key": "sk-..."}        where no Authorization header can be sent
            {"type": "message", "content": "Hello"}  with "conversation" to go on with an earlier one
            {"type": "stop"}                         gives the answer up
    gateway {"type": "ready", "conversation": "..."}
            {"type": "token", "content": "Hel"}
            {"type": "done", "finish_reason": "stop", "usage": {...}, "citations": [...]}
            {"type": "error", "error": {...}}        as over HTTP

Further fields of a message (temperature, max_tokens, knowledge, ...) go to the model.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import weakref
from typing import Any

import orjson
from aiohttp import WSCloseCode, WSMsgType, web

from serving.gateway import asks, streams
from serving.gateway.chat import Chat
from serving.gateway.errors import ApiError, bad_request
from serving.gateway.keys import Keys
from serving.gateway.logger import logger
from serving.gateway.metrics import Metrics
from serving.gateway.settings import Settings
from serving.gateway.traceparent import TraceParent

_HEARTBEAT_S = 30.0
_AUTH_S = 10.0
_OWN = frozenset({"type", "content", "conversation"})


class Sockets:
    """All open WebSockets of a gateway."""

    def __init__(self, settings: Settings, chat: Chat, keys: Keys, metrics: Metrics) -> None:
        self._settings = settings
        self._chat = chat
        self._keys = keys
        self._metrics = metrics
        self._open: weakref.WeakSet[_Socket] = weakref.WeakSet()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One client, from its first message to its last."""
        if len(self._open) >= self._settings.limits.websockets:
            raise ApiError(
                503, "Too many WebSockets.", kind="server_error", code="full", retry_after_s=5
            )
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host:
            raise ApiError(
                403, "Other origins may not open a WebSocket.", kind="invalid_request_error"
            )
        given = request.headers.get("Authorization")
        tenant = self._keys.tenant(given) if given else None
        ws = web.WebSocketResponse(
            heartbeat=_HEARTBEAT_S, max_msg_size=self._settings.limits.body_bytes, compress=False
        )
        await ws.prepare(request)
        socket = _Socket(ws, self._settings, self._chat, self._keys, tenant)
        self._open.add(socket)
        self._metrics.websockets.inc()
        try:
            await socket.serve()
        finally:
            self._open.discard(socket)
            self._metrics.websockets.dec()
        return ws

    async def close(self, patience_s: float) -> None:
        """Let answers end, then tell every client that this gateway goes away."""
        answering = [one.answering for one in self._open if one.answering is not None]
        if answering:
            await asyncio.wait(answering, timeout=patience_s)
        closing = [
            one.ws.close(code=WSCloseCode.GOING_AWAY, message=b"shutdown") for one in self._open
        ]
        await asyncio.gather(*closing, return_exceptions=True)


class _Socket:
    """One WebSocket."""

    def __init__(
        self,
        ws: web.WebSocketResponse,
        settings: Settings,
        chat: Chat,
        keys: Keys,
        tenant: str | None,
    ) -> None:
        self.ws = ws
        self._settings = settings
        self._chat = chat
        self._keys = keys
        self._tenant = tenant
        self._conversation = f"ws-{secrets.token_urlsafe(12)}"
        self.answering: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        try:
            if self._tenant is None:
                self._tenant = await self._authenticated()
            await self._say({"type": "ready", "conversation": self._conversation})
            async for message in self.ws:
                if message.type is WSMsgType.TEXT:
                    await self._take(message.data)
                elif message.type is WSMsgType.BINARY:
                    await self._fail(bad_request("Messages are text, as JSON."))
        except ApiError as error:
            await self._fail(error)
            await self.ws.close(code=WSCloseCode.POLICY_VIOLATION)
        except ConnectionError:
            pass
        finally:
            if self.answering is not None:
                self.answering.cancel()

    async def _authenticated(self) -> str:
        """The tenant: nobody's key is needed where nobody has one."""
        try:
            return self._keys.tenant(None)
        except ApiError:
            pass
        try:
            first = await self.ws.receive_json(loads=orjson.loads, timeout=_AUTH_S)
        except (TypeError, ValueError, TimeoutError) as error:
            raise ApiError(
                401,
                'The first message must be {"type": "auth", "key": "sk-..."}.',
                kind="invalid_request_error",
                code="invalid_api_key",
            ) from error
        return self._by_key(first if isinstance(first, dict) else {})

    def _by_key(self, message: dict[str, Any]) -> str:
        key = message.get("key")
        return self._keys.tenant(f"Bearer {key}" if key else None)

    async def _take(self, text: str) -> None:
        try:
            message = _read(text)
            kind = message.get("type")
            if kind == "stop":
                if self.answering is not None:
                    self.answering.cancel()
            elif kind == "message":
                if self.answering is not None and not self.answering.done():
                    raise bad_request("An answer is under way; stop it first.")
                self.answering = asyncio.create_task(self._answer(message))
                # Begun before a stop can follow: a task that has not begun ends without a word.
                await asyncio.sleep(0)
            elif kind == "auth":
                if message.get("key"):
                    self._tenant = self._by_key(message)
            else:
                raise bad_request(f"type={kind!r} is none of message, stop, auth.", "type")
        except ApiError as error:
            await self._fail(error)

    async def _answer(self, message: dict[str, Any]) -> None:
        try:
            await self._stream(message)
        except asyncio.CancelledError:
            await self._say_last({"type": "done", "finish_reason": "stopped"})
        except ApiError as error:
            await self._fail(error)
        except ConnectionError:
            pass
        except Exception:
            logger().exception("a WebSocket failed in the gateway")
            await self._fail(ApiError(500, "The gateway failed.", kind="server_error"))

    async def _stream(self, message: dict[str, Any]) -> None:
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            raise bad_request("'content' must be a text.", "content")
        further = {name: value for name, value in message.items() if name not in _OWN}
        body = {
            **further,
            "messages": [{"role": "user", "content": content}],
            "conversation": message.get("conversation") or self._conversation,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        assert self._tenant is not None
        ask = asks.parse(
            "chat",
            orjson.dumps(body),
            tenant=self._tenant,
            model=self._settings.model,
            request_id=f"req-{secrets.token_hex(12)}",
            trace=TraceParent.new(),
        )
        self._conversation = ask.conversation or self._conversation
        reply = await self._chat.reply(ask)
        if reply.events is None:
            raise _refused(reply.status, reply.whole)
        done: dict[str, Any] = {"type": "done", "request_id": ask.request_id}
        async with contextlib.aclosing(reply.events) as pieces:
            async for piece, _ in pieces:
                for event in streams.events([piece]):
                    if "error" in event:
                        raise _refused(502, orjson.dumps(event))
                    await self._hand_on(event, done)
        await self._say(done)

    async def _hand_on(self, event: dict[str, Any], done: dict[str, Any]) -> None:
        text = streams.delta(event)
        if text:
            await self._say({"type": "token", "content": text})
        for name in ("usage", "citations"):
            if event.get(name):
                done[name] = event[name]
        for choice in event.get("choices", ()):
            if choice.get("finish_reason"):
                done["finish_reason"] = choice["finish_reason"]

    async def _say(self, value: dict[str, Any]) -> None:
        await self.ws.send_str(orjson.dumps(value).decode())

    async def _say_last(self, value: dict[str, Any]) -> None:
        """Say it if the client is still there."""
        if not self.ws.closed:
            with contextlib.suppress(ConnectionError):
                await self._say(value)

    async def _fail(self, error: ApiError) -> None:
        await self._say_last({"type": "error", "status": error.status, "error": error.fields})


def _read(text: str) -> dict[str, Any]:
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"The message is not JSON: {error}.") from error
    if not isinstance(message, dict):
        raise bad_request("The message must be a JSON object.")
    return message


def _refused(status: int, body: bytes | None) -> ApiError:
    """What a replica said against it."""
    try:
        fields = orjson.loads(body or b"{}")["error"]
        return ApiError(
            status, str(fields["message"]), kind=str(fields["type"]), code=fields.get("code")
        )
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ApiError(status, "The model's server refused it.", kind="server_error")
