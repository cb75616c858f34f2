"""The load client: one asyncio loop that sends to an OpenAI-compatible server and must not be late.

Requests are encoded before the clock starts, so that between two sends there is only the send.
Definitions are those of `vllm bench serve` (vllm/benchmarks/lib/endpoint_request_func.py): the clock
of a request starts before its bytes leave, a chunk with choices counts when it is read, also one with
an empty text, and tokens are those of the server's usage.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workbench.measure.outcome import Outcome, Request

if TYPE_CHECKING:
    import aiohttp

Tell = Callable[[int], None]
"""Called with how many requests have been answered so far."""

_READ_BUFFER_BYTES = 2**20
"""Beyond aiohttp's 64 KiB, at which it stops reading a stream until it was consumed."""
_REPORT_EVERY_S = 0.5
_BEAT_S = 0.02
NOT_SENT = "not sent: the turn before failed"


async def send_all(
    url: str,
    model: str,
    requests: Sequence[Request],
    *,
    start: Callable[[], float],
    concurrency: int | None = None,
    timeout_s: float = 600.0,
    tell: Tell | None = None,
    lags: list[float] | None = None,
) -> list[Outcome]:
    """Send requests to `url`/v1/completions and wait for all of them.

    Args:    start: called when all is ready to go; the start of the run on the system's monotonic
                 clock.
             timeout_s: after which a single request is given up and is a row with an error.
             lags: takes how late the event loop was, in seconds, some fifty times a second.
    """
    import aiohttp

    key = os.environ.get("OPENAI_API_KEY")
    outcomes = [Outcome.of(i, request) for i, request in enumerate(requests)]
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        read_bufsize=_READ_BUFFER_BYTES,
        headers={"Content-Type": "application/json"}
        | ({"Authorization": f"Bearer {key}"} if key else {}),
        auto_decompress=False,
    ) as session:
        load = _Load(session, f"{url.rstrip('/')}/v1/completions", model, requests, outcomes)
        load.start_s = start()
        beside = [asyncio.create_task(load.report(tell)), asyncio.create_task(_beat(lags))]
        try:
            if concurrency:
                await load.closed(concurrency)
            else:
                await load.open()
        finally:
            for task in beside:
                task.cancel()
        if tell is not None:
            tell(load.answered)
    return outcomes


async def _beat(lags: list[float] | None) -> None:
    """How late this loop gets to what is due: a client that cannot keep up shows here first."""
    while lags is not None:
        due_s = time.monotonic() + _BEAT_S
        await asyncio.sleep(_BEAT_S)
        lags.append(time.monotonic() - due_s)


async def _until(at_s: float) -> None:
    """Never early: timers of uvloop are whole milliseconds, and may end before their time."""
    while (wait_s := at_s - time.monotonic()) > 0:
        await asyncio.sleep(wait_s)


class _Load:
    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        model: str,
        requests: Sequence[Request],
        outcomes: Sequence[Outcome],
    ) -> None:
        self._session = session
        self._url = url
        self._model = model
        self._requests = requests
        self._outcomes = outcomes
        self._answered_by = {r.after for r in requests if r.after is not None}
        # What follows an answer cannot be encoded before the answer is there.
        self._bodies = [
            b"" if request.after is not None else self._body(i, request.prompt_token_ids)
            for i, request in enumerate(requests)
        ]
        self._followers: dict[int, list[int]] = {}
        for i, request in enumerate(requests):
            if request.after is not None:
                self._followers.setdefault(request.after, []).append(i)
        self._token_ids: dict[int, list[int]] = {}
        self.answered = 0
        # The event loop's clock is time.monotonic, which is one for the whole system.
        self.start_s = 0.0

    async def open(self) -> None:
        """Each request leaves when it is due, whatever came back."""
        due = (i for i, request in enumerate(self._requests) if request.after is None)
        sent: list[asyncio.Task[None]] = []
        for i in sorted(due, key=lambda i: self._outcomes[i].scheduled_s):
            await _until(self.start_s + self._outcomes[i].scheduled_s)
            sent.append(asyncio.create_task(self._conversation(i)))
        await asyncio.gather(*sent)

    async def closed(self, concurrency: int) -> None:
        """So many users; each has the next conversation when the last one is over."""
        queue = iter([i for i, request in enumerate(self._requests) if request.after is None])

        async def user() -> None:
            for i in queue:
                self._outcomes[i].scheduled_s = time.monotonic() - self.start_s
                await self._conversation(i)

        await _until(self.start_s)
        await asyncio.gather(*(user() for _ in range(concurrency)))

    async def report(self, tell: Tell | None) -> None:
        while tell is not None:
            tell(self.answered)
            await asyncio.sleep(_REPORT_EVERY_S)

    async def _conversation(self, i: int) -> None:
        """A request, and what follows its answer."""
        await self._send(i)
        if followers := self._followers.get(i):
            await asyncio.gather(*(self._follow(i, j) for j in followers))

    async def _follow(self, i: int, j: int) -> None:
        if self._outcomes[i].error is not None:
            self._outcomes[j].error = NOT_SENT
            self.answered += 1
            await asyncio.gather(*(self._follow(j, k) for k in self._followers.get(j, ())))
            return
        request, outcome = self._requests[j], self._outcomes[j]
        prompt = list(request.prompt_token_ids)
        for at, answered in request.answers:
            ids = self._token_ids[answered]
            prompt[at : at + len(ids)] = ids
        self._bodies[j] = self._body(j, prompt)
        outcome.scheduled_s = self._outcomes[i].end_s + request.think_s
        await _until(self.start_s + outcome.scheduled_s)
        await self._conversation(j)

    async def _send(self, i: int) -> None:
        outcome, body = self._outcomes[i], self._bodies[i]
        self._bodies[i] = b""
        outcome.sent_s = time.monotonic() - self.start_s
        try:
            async with self._session.post(self._url, data=body) as response:
                if response.status != 200:
                    outcome.error = _complaint(response.status, await response.text())
                else:
                    await self._read(response, i)
                    if outcome.error is None and outcome.first_token_s != outcome.first_token_s:
                        outcome.error = "the answer was empty: no chunk came"
                    elif outcome.error is None and outcome.output_tokens == 0:
                        outcome.error = "the answer broke off: no usage came"
        except Exception as error:  # whatever it is, it belongs to this request alone
            outcome.error = _cause(error, begun=outcome.first_token_s == outcome.first_token_s)
        self.answered += 1

    async def _read(self, response: aiohttp.ClientResponse, i: int) -> None:
        outcome, keep = self._outcomes[i], i in self._answered_by
        rest = b""
        async for piece in response.content.iter_any():
            now_s = time.monotonic() - self.start_s
            if b"\r" in piece:  # servers may end lines either way
                piece = piece.replace(b"\r\n", b"\n")
            *messages, rest = (rest + piece).split(b"\n\n")
            for message in messages:
                if not message.startswith(b"data: ") or message == b"data: [DONE]":
                    continue  # a comment (ping), or the end
                data = json.loads(message[6:])
                if choices := data.get("choices"):
                    outcome.chunk(now_s)
                    if keep:
                        ids = self._token_ids.setdefault(i, [])
                        ids += choices[0].get("token_ids") or ()
                elif usage := data.get("usage"):
                    outcome.output_tokens = usage["completion_tokens"]
                    outcome.prompt_tokens = usage["prompt_tokens"]
                elif "error" in data:
                    outcome.error = _complaint(response.status, message[6:].decode())
        if keep and len(self._token_ids.get(i, ())) != outcome.output_tokens:
            # The next turn would not be the conversation that was asked for.
            outcome.error = outcome.error or "the server does not return token ids"

    def _body(self, i: int, prompt: Sequence[int]) -> bytes:
        asked: dict[str, Any] = {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": self._requests[i].output_tokens,
            "ignore_eos": True,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if i in self._answered_by:
            asked["return_token_ids"] = True
        return json.dumps(asked).encode()


def local(requests: Sequence[Request], chosen: Sequence[int]) -> list[Request]:
    """Some of the requests, with what they say of one another in positions among the chosen."""
    position = {i: k for k, i in enumerate(chosen)}
    return [
        replace(
            requests[i],
            after=None if requests[i].after is None else position[requests[i].after or 0],
            answers=tuple((at, position[j]) for at, j in requests[i].answers),
        )
        for i in chosen
    ]


def _cause(error: Exception, *, begun: bool) -> str:
    """The failure in the words of a reader of results, not of a library."""
    import aiohttp

    if isinstance(error, TimeoutError):
        return "timed out" + (" in mid-stream" if begun else " before the first chunk")
    if isinstance(error, ValueError):
        return f"malformed chunk: {error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        refused = error.os_error.errno == errno.ECONNREFUSED
        return "connection refused" if refused else f"no connection: {error.os_error.strerror}"
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientConnectionError | OSError):
        return "connection reset" + (" in mid-stream" if begun else " before the first chunk")
    return f"{type(error).__name__}: {error}"


def _complaint(status: int, text: str) -> str:
    try:
        said = json.loads(text)
        text = said.get("error", said).get("message", text)
    except (ValueError, AttributeError):
        pass
    return f"HTTP {status}: {text.strip().splitlines()[0][:200] if text.strip() else 'no reason'}"
