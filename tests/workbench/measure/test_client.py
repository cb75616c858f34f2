"""The load client against a server whose behaviour is known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from workbench.measure.client import send, send_all
from workbench.measure.engine import Request

Answer = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class Server:
    def __init__(self) -> None:
        self.received_s: list[float] = []
        self.bodies: list[dict[str, Any]] = []
        self.answer: Answer = answer_with([["a"], ["b"], ["c"]], usage=5)
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.received_s.append(asyncio.get_running_loop().time())
        body = await request.json()
        self.bodies.append(body)
        return await self.answer(request, body)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    served = Server()
    app = web.Application()
    app.router.add_post("/v1/completions", served.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    served.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield served
    await runner.cleanup()


def event(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def answer_with(writes: list[list[str]], usage: int | None) -> Answer:
    """Each inner list is sent in one write."""

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for texts in writes:
            await response.write(b"".join(event({"choices": [{"text": t}]}) for t in texts))
            await asyncio.sleep(0.01)
        if usage is not None:
            counted = {"completion_tokens": usage, "prompt_tokens": len(body["prompt"])}
            await response.write(event({"choices": [], "usage": counted}) + event(b"[DONE]"))
        return response

    return answer


def asking(*scheduled_s: float) -> list[Request]:
    return [Request(at_s, [1, 2, 3], 5) for at_s in scheduled_s]


async def test_requests_leave_when_scheduled_even_if_nothing_comes_back(server: Server) -> None:
    gate = asyncio.Event()
    quick = server.answer

    async def stalled(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if len(server.received_s) == 20:
            gate.set()
        await gate.wait()  # nobody is answered before the last has arrived
        return await quick(request, body)

    server.answer = stalled
    scheduled_s = np.arange(20) * 0.02
    start_s, outcomes = await send_all(server.url, "m", asking(*scheduled_s))
    assert [o.error for o in outcomes] == [None] * 20
    assert all(o.sent_s >= o.scheduled_s for o in outcomes)
    assert min(o.first_token_s for o in outcomes) > max(o.sent_s for o in outcomes)
    assert all(np.array(server.received_s) >= start_s + scheduled_s)


async def test_tokens_are_counted_by_the_servers_usage_and_chunks_by_arrival(
    server: Server,
) -> None:
    server.answer = answer_with([["a", "b"], ["c"]], usage=9)
    _, [outcome] = await send_all(server.url, "m", asking(0.0))
    assert outcome.output_tokens == 9
    assert outcome.prompt_tokens == 3
    assert len(outcome.itl_s) == 2
    assert outcome.itl_s[0] == 0.0  # in one piece with the chunk before
    assert outcome.itl_s[1] >= 0.005
    assert outcome.end_s == pytest.approx(outcome.first_token_s + sum(outcome.itl_s))


async def test_what_is_asked_pins_the_work(server: Server) -> None:
    await send_all(server.url, "model-name", asking(0.0))
    [body] = server.bodies
    assert body["prompt"] == [1, 2, 3]
    assert (body["max_tokens"], body["ignore_eos"], body["temperature"]) == (5, True, 0.0)
    assert body["model"] == "model-name"
    assert body["stream_options"] == {"include_usage": True}


async def test_a_refusal_belongs_to_its_request_alone(server: Server) -> None:
    good = server.answer

    async def refuse_first(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if len(server.bodies) == 1:
            return web.json_response({"error": {"message": "prompt too long"}}, status=400)
        return await good(request, body)

    server.answer = refuse_first
    _, outcomes = await send_all(server.url, "m", asking(0.0, 0.05))
    assert outcomes[0].error == "HTTP 400: prompt too long"
    assert outcomes[0].first_token_s != outcomes[0].first_token_s
    assert outcomes[1].error is None


async def test_an_answer_that_breaks_off_is_an_error(server: Server) -> None:
    server.answer = answer_with([["a"]], usage=None)
    _, [outcome] = await send_all(server.url, "m", asking(0.0))
    assert outcome.error == "the answer broke off: no usage came"


async def test_an_error_within_the_stream_is_an_error(server: Server) -> None:
    async def fails(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(event({"error": {"message": "engine died"}}))
        return response

    server.answer = fails
    _, [outcome] = await send_all(server.url, "m", asking(0.0))
    assert outcome.error is not None
    assert "engine died" in outcome.error


async def test_no_server_is_an_error_of_each_request() -> None:
    _, outcomes = await send_all("http://127.0.0.1:9", "m", asking(0.0, 0.0))
    assert all(o.error and "Connect" in o.error for o in outcomes)


async def test_a_silent_server_times_out(server: Server) -> None:
    async def silent(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    server.answer = silent
    _, [outcome] = await send_all(server.url, "m", asking(0.0), timeout_s=0.2)
    assert outcome.error == "timed out"


async def test_closed_loop_never_exceeds_its_concurrency(server: Server) -> None:
    _, outcomes = await send_all(server.url, "m", asking(*[0.0] * 7), concurrency=2)
    for outcome in outcomes:
        others = [o for o in outcomes if o.sent_s <= outcome.sent_s < o.end_s]
        assert len(others) <= 2
    assert all(o.sent_s - o.scheduled_s < 0.005 for o in outcomes)


async def test_it_works_in_a_notebook_whose_thread_has_an_event_loop() -> None:
    _, outcomes = send("http://127.0.0.1:9", "m", asking(0.0))
    assert len(outcomes) == 1
    assert outcomes[0].error


def test_it_works_where_no_event_loop_runs() -> None:
    _, outcomes = send("http://127.0.0.1:9", "m", asking(0.0))
    assert outcomes[0].error


async def test_progress_reaches_the_end(server: Server) -> None:
    said: list[float] = []
    await send_all(
        server.url, "m", asking(0.0, 0.0), on_progress=lambda _, share: said.append(share)
    )
    assert said == sorted(said)
    assert said[-1] == 1.0
