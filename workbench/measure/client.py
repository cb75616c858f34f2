"""The load client: one asyncio process that sends to an OpenAI-compatible server and must not be late.

Requests are drawn and encoded before the clock starts, so that between two sends there is only the
send. Definitions are those of `vllm bench serve` (vllm/benchmarks/lib/endpoint_request_func.py): the
clock of a request starts before its bytes leave, and a chunk counts when it is read.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from workbench.measure.engine import OnProgress, Outcome, Request

if TYPE_CHECKING:
    import aiohttp

_READ_BUFFER_BYTES = 2**20
_REPORT_EVERY_S = 0.5
_LEAD_S = 0.05
"""Between drawing the start of the run and the first send: the event loop gets going."""


def send(
    url: str,
    model: str,
    requests: Sequence[Request],
    *,
    concurrency: int | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[float, list[Outcome]]:
    """`send_all` to its end, from any thread: a notebook's has an event loop already."""
    work = send_all(url, model, requests, concurrency=concurrency, on_progress=on_progress)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []

    async def tracked() -> tuple[float, list[Outcome]]:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))
        return await work

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(asyncio.run, tracked())
        try:
            return future.result()
        except BaseException:  # Ctrl-C reaches this thread alone
            for loop, task in running:
                if task is not None and not loop.is_closed():
                    loop.call_soon_threadsafe(task.cancel)
            raise


async def send_all(
    url: str,
    model: str,
    requests: Sequence[Request],
    *,
    concurrency: int | None = None,
    on_progress: OnProgress | None = None,
    timeout_s: float = 600.0,
) -> tuple[float, list[Outcome]]:
    """Send requests to `url`/v1/completions and wait for all of them.

    Args:    timeout_s: after which a single request is given up and is a row with an error.
    Returns: the start of the run on the system's monotonic clock, and an outcome per request.
    """
    import aiohttp

    bodies = [_body(model, request) for request in requests]
    outcomes = [Outcome.of(i, request) for i, request in enumerate(requests)]
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        read_bufsize=_READ_BUFFER_BYTES,
        headers={"Content-Type": "application/json"},
        auto_decompress=False,
    ) as session:
        load = _Load(session, f"{url.rstrip('/')}/v1/completions", bodies, outcomes)
        reporting = asyncio.create_task(load.report(on_progress))
        try:
            if concurrency:
                await load.closed(concurrency)
            else:
                await load.open()
        finally:
            reporting.cancel()
        load.tell(on_progress)
    return load.start_s, outcomes


class _Load:
    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        bodies: Sequence[bytes],
        outcomes: Sequence[Outcome],
    ) -> None:
        self._session = session
        self._url = url
        self._bodies = bodies
        self._outcomes = outcomes
        self._answered = 0
        # The event loop's clock is time.monotonic, which is one for the whole system.
        self.start_s = time.monotonic() + _LEAD_S

    async def open(self) -> None:
        """Each request leaves when it is due, whatever came back."""
        clock = asyncio.get_running_loop()
        sent: list[asyncio.Task[None]] = []
        for i in sorted(range(len(self._outcomes)), key=lambda i: self._outcomes[i].scheduled_s):
            wait_s = self.start_s + self._outcomes[i].scheduled_s - clock.time()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            sent.append(asyncio.create_task(self._send(i)))
        await asyncio.gather(*sent)

    async def closed(self, concurrency: int) -> None:
        """So many users; each sends the next request when its last one was answered."""
        queue = iter(range(len(self._outcomes)))

        async def user() -> None:
            for i in queue:
                self._outcomes[i].scheduled_s = time.monotonic() - self.start_s
                await self._send(i)

        await asyncio.sleep(_LEAD_S)
        await asyncio.gather(*(user() for _ in range(concurrency)))

    async def report(self, on_progress: OnProgress | None) -> None:
        while on_progress is not None:
            self.tell(on_progress)
            await asyncio.sleep(_REPORT_EVERY_S)

    def tell(self, on_progress: OnProgress | None) -> None:
        done, total = self._answered, len(self._outcomes)
        if on_progress is not None:
            on_progress(f"{done} of {total} requests answered", done / total)

    async def _send(self, i: int) -> None:
        outcome = self._outcomes[i]
        outcome.sent_s = time.monotonic() - self.start_s
        try:
            async with self._session.post(self._url, data=self._bodies[i]) as response:
                if response.status != 200:
                    outcome.error = _complaint(response.status, await response.text())
                else:
                    await self._read(response, outcome)
                    if outcome.error is None and outcome.output_tokens == 0:
                        outcome.error = "the answer broke off: no usage came"
        except TimeoutError:
            outcome.error = "timed out"
        except Exception as error:  # whatever it is, it belongs to this request alone
            outcome.error = f"{type(error).__name__}: {error}"
        self._answered += 1

    async def _read(self, response: aiohttp.ClientResponse, outcome: Outcome) -> None:
        rest = b""
        async for piece in response.content.iter_any():
            *messages, rest = (rest + piece).split(b"\n\n")
            now_s = time.monotonic() - self.start_s
            for message in messages:
                if not message.startswith(b"data: {"):
                    continue  # a comment (ping), or [DONE]
                data = json.loads(message[6:])
                if data.get("choices"):
                    outcome.chunk(now_s)
                elif usage := data.get("usage"):
                    outcome.output_tokens = usage["completion_tokens"]
                    outcome.prompt_tokens = usage["prompt_tokens"]
                elif "error" in data:
                    outcome.error = _complaint(response.status, message[6:].decode())


def _body(model: str, request: Request) -> bytes:
    return json.dumps(
        {
            "model": model,
            "prompt": list(request.prompt_token_ids),
            "max_tokens": request.output_tokens,
            "ignore_eos": True,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()


def _complaint(status: int, text: str) -> str:
    try:
        said = json.loads(text)
        text = said.get("error", said).get("message", text)
    except (ValueError, AttributeError):
        pass
    return f"HTTP {status}: {text.strip().splitlines()[0][:200] if text.strip() else 'no reason'}"
