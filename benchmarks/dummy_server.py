"""An OpenAI-compatible server that computes nothing: as little as an answer can cost.

    python -m benchmarks.dummy_server [GAP_S]

prints its port. A request for n tokens gets one chunk at once and n - 1 more, one every `gap_s` that
the model's name says (`gap-0.01`; GAP_S is of the one that it lists); all streams of one gap tick
together, as the sequences of a batch do. Times of an answer are then the client's and the loopback's
alone.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import cast

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
GAP_S = float(sys.argv[1]) if len(sys.argv) > 1 else 0.01
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def _event(data: object) -> bytes:
    line = b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"
    return b"%x\r\n" % len(line) + line + b"\r\n"


def _message(**more: object) -> dict[str, object]:
    shared = {"id": "cmpl-0123456789abcdef0123456789abcdef", "object": "text_completion"}
    return {**shared, "created": 1_800_000_000, "model": "dummy", **more}


_CHOICE = {
    "index": 0,
    "text": " word",
    "logprobs": None,
    "finish_reason": None,
    "stop_reason": None,
}
CHUNK = _event(_message(choices=[_CHOICE], usage=None))


def _whole(status: bytes, data: object) -> bytes:
    body = json.dumps(data).encode()
    kind = b"content-type: application/json\r\n"
    return b"HTTP/1.1 %s\r\n%bcontent-length: %d\r\n\r\n%b" % (status, kind, len(body), body)


class _Ticker:
    """Streams of one gap, served together at each tick."""

    def __init__(self, gap_s: float) -> None:
        self._gap_s = gap_s
        self._streams: set[Iterator[None]] = set()
        asyncio.get_running_loop().create_task(self._tick())

    def add(self, stream: Iterator[None]) -> None:
        next(stream)
        self._streams.add(stream)

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            due_s += self._gap_s
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            for stream in list(self._streams):
                if next(stream, "over") == "over":
                    self._streams.discard(stream)


class _Connection(asyncio.Protocol):
    def __init__(self, tickers: dict[float, _Ticker]) -> None:
        self._tickers = tickers
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            said = _LENGTH.search(self._received[:end])
            whole = end + 4 + (int(said[1]) if said else 0)
            if len(self._received) < whole:
                return
            head, body = self._received[:end], self._received[end + 4 : whole]
            self._received = self._received[whole:]
            if head.startswith(b"POST /v1/completions"):
                asked = json.loads(body)
                self._answer(asked["max_tokens"], asked["model"])
            elif head.startswith(b"GET /v1/models"):
                self._transport.write(_whole(b"200 OK", {"data": [{"id": f"gap-{GAP_S}"}]}))
            else:
                self._transport.write(_whole(b"404 Not Found", {}))

    def _answer(self, tokens: int, model: str) -> None:
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
        last = _event(_message(choices=[], usage=usage)) + _event(b"[DONE]") + b"0\r\n\r\n"
        if tokens == 1:
            self._transport.write(_HEAD + CHUNK + last)
            return
        gap_s = float(model.removeprefix("gap-"))
        if gap_s not in self._tickers:
            self._tickers[gap_s] = _Ticker(gap_s)
        self._tickers[gap_s].add(self._stream(tokens, last))

    def _stream(self, tokens: int, last: bytes) -> Iterator[None]:
        self._transport.write(_HEAD + CHUNK)
        yield
        for _ in range(tokens - 1):
            self._transport.write(CHUNK)
            yield
        self._transport.write(last)


async def _serve() -> None:
    tickers: dict[float, _Ticker] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(tickers), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    with suppress(KeyboardInterrupt):
        uvloop.run(_serve())
