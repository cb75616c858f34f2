"""A server that speaks as vLLM does, without a model, and fails as it is told; a gateway before it.

    async with upstream(pace_s=0.01) as vllm, gateway(vllm.url) as made:
        ...  # http://127.0.0.1:{made.port}
        vllm.breaks_after = 3

Fields may be changed at any time and hold for the next request.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from serving.gateway.server import Gateway, running
from serving.gateway.settings import load

MODEL = "chat"
Json = dict[str, Any]


@dataclass
class Upstream:
    """What it does, and what it was asked."""

    answer: str | Callable[[Json], str] | None = None
    """Said to everybody, or made of the body of a chat; None says the question again."""
    first_s: float = 0.0
    """Before the first token."""
    pace_s: float = 0.0
    """Before each further token; a token is a word."""
    status: int = 200
    """Other than 200: no answer, but an error of vLLM."""
    healthy: bool = True
    breaks_after: int | None = None
    """Tokens after which the connection is torn down."""
    errs_after: int | None = None
    """Tokens after which the stream says an error and ends."""
    silent_after: int | None = None
    """Tokens after which nothing more comes."""
    port: int = 0
    asked: list[tuple[str, Json]] = field(default_factory=list)
    """(path, body), warm-ups of gateways included."""
    running: int = 0
    given_up: int = 0
    """Answers that the client did not wait for."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def chats(self) -> list[Json]:
        """Bodies of chats, oldest first."""
        return [body for path, body in self.asked if path == "/v1/chat/completions"]

    # -- what it answers -------------------------------------------------------------------------

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        self.asked.append((request.path, body))
        if self.status != 200:
            return web.json_response(_error(self.status), status=self.status)
        most = body.get("max_tokens")
        if most is not None and (isinstance(most, bool | str) or most != int(most) or most < 1):
            return web.json_response(_error(400), status=400)
        self.running += 1
        try:
            said = _Said.of(self, request.path, body)
            if body.get("stream"):
                return await self._stream(request, said, body)
            await asyncio.sleep(self.first_s + self.pace_s * max(0, len(said.tokens) - 1))
            return web.json_response(body=orjson.dumps(said.whole()))
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        except ConnectionError:
            self.given_up += 1
            return web.Response(status=499)
        finally:
            self.running -= 1

    async def _stream(self, request: web.Request, said: _Said, body: Json) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)

        async def send(event: Json) -> None:
            await response.write(b"data: " + orjson.dumps(event) + b"\n\n")

        for count, token in enumerate(said.tokens):
            await asyncio.sleep(self.pace_s if count else self.first_s)
            if count == 0 and said.chat:  # vLLM names the role when the first token is there
                await send(said.piece({"role": "assistant", "content": ""}))
            if count == self.breaks_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            if count == self.errs_after:
                await send(_error(500))
                await response.write(b"data: [DONE]\n\n")
                return response
            if count == self.silent_after:
                await asyncio.sleep(3600)
            last = count == len(said.tokens) - 1
            await send(said.piece({"content": token}, said.reason if last else None))
        if (body.get("stream_options") or {}).get("include_usage"):
            await send(said.head | {"choices": [], "usage": said.usage})
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


@dataclass
class _Said:
    """One answer."""

    chat: bool
    tokens: list[str]
    reason: str
    prompt_tokens: int
    model: str
    identity: str

    @classmethod
    def of(cls, upstream: Upstream, path: str, body: Json) -> _Said:
        chat = path == "/v1/chat/completions"
        texts = [str(m.get("content")) for m in body["messages"]] if chat else [str(body["prompt"])]
        answer = upstream.answer
        if answer is None or (callable(answer) and not chat):
            answer = texts[-1]
        text = answer(body) if callable(answer) else answer
        tokens = [piece for piece in _words(text) if piece]
        most = body.get("max_tokens") or body.get("max_completion_tokens") or len(tokens)
        kept = tokens[: int(most)] or [""]
        return cls(
            chat=chat,
            tokens=kept,
            reason="stop" if len(kept) >= len(tokens) else "length",
            prompt_tokens=sum(len(text.split()) for text in texts),
            model=body["model"],
            identity=f"{'chatcmpl' if chat else 'cmpl'}-{len(upstream.asked)}",
        )

    @property
    def head(self) -> Json:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {
            "id": self.identity,
            "object": kind,
            "created": int(time.time()),
            "model": self.model,
        }

    @property
    def usage(self) -> Json:
        asked, said = self.prompt_tokens, len(self.tokens)
        return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}

    def piece(self, delta: Json, reason: str | None = None) -> Json:
        what = {"delta": delta} if self.chat else {"text": delta["content"]}
        choice = {"index": 0, **what, "logprobs": None, "finish_reason": reason}
        return self.head | {"choices": [choice]}

    def whole(self) -> Json:
        text = "".join(self.tokens)
        what: Json = {"message": {"role": "assistant", "content": text}}
        choice = {"index": 0, **(what if self.chat else {"text": text})}
        choice["finish_reason"] = self.reason
        named = {"object": "chat.completion"} if self.chat else {}
        return self.head | named | {"choices": [choice], "usage": self.usage}


def _words(text: str) -> list[str]:
    """Words with the blank before them, so that they join to the text."""
    words = text.split(" ")
    return [words[0], *(f" {word}" for word in words[1:])]


def _error(status: int) -> Json:
    kind = "ServiceUnavailableError" if status == 503 else "InternalServerError"
    message = f"The engine was told to answer {status}."
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


@contextlib.asynccontextmanager
async def upstream(**fields: Any) -> AsyncIterator[Upstream]:
    """Such a server on a free port of this event loop."""
    made = Upstream(**fields)
    app = web.Application()
    app.router.add_get("/health", made.health)
    app.router.add_post("/v1/chat/completions", made.complete)
    app.router.add_post("/v1/completions", made.complete)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", made.port).start()
        made.port = runner.addresses[0][1]
        yield made
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def gateway(*urls: str, wait: bool = True, **given: Any) -> AsyncIterator[Gateway]:
    """A gateway before replicas of the track `blue`.

    Args:    wait: until one of them is warm.
             given: settings; by default a free port, looks every 50 ms, and no patience at the end.
    """
    usual: dict[str, Any] = {
        "model": MODEL,
        "port": 0,
        "tracks": {"blue": urls},
        "health": {"every_s": 0.05},
        "timeouts": {"drain_s": 0.5},
    }
    settings = load(**usual | given)
    async with running(settings) as made:
        async with asyncio.timeout(10):
            while wait and not made.fleet.ready(settings.first_stable):
                await asyncio.sleep(0.01)
        yield made
