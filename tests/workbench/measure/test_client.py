"""The load client against a server whose behaviour is known."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from workbench.measure.client import NOT_SENT, send_all
from workbench.measure.load import send
from workbench.measure.outcome import Outcome, Request

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


async def sent(
    server: Server, requests: Sequence[Request], **options: Any
) -> tuple[float, list[Outcome]]:
    """The start of the run on the clock of `received_s`, and what came back."""
    start_s = time.monotonic() + 0.01
    outcomes = await send_all(server.url, "m", requests, start=lambda: start_s, **options)
    return start_s, outcomes


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
    start_s, outcomes = await sent(server, asking(*scheduled_s))
    assert [o.error for o in outcomes] == [None] * 20
    assert all(o.sent_s >= o.scheduled_s for o in outcomes)
    assert min(o.first_token_s for o in outcomes) > max(o.sent_s for o in outcomes)
    assert all(np.array(server.received_s) >= start_s + scheduled_s)


async def test_tokens_are_counted_by_the_servers_usage_and_chunks_by_arrival(
    server: Server,
) -> None:
    server.answer = answer_with([["a", "b"], ["c"]], usage=9)
    _, [outcome] = await sent(server, asking(0.0))
    assert outcome.output_tokens == 9
    assert outcome.prompt_tokens == 3
    assert len(outcome.itl_s) == 2
    assert outcome.itl_s[0] == 0.0  # in one piece with the chunk before
    assert outcome.itl_s[1] >= 0.005
    assert outcome.end_s == pytest.approx(outcome.first_token_s + sum(outcome.itl_s))


async def test_what_is_asked_pins_the_work(server: Server) -> None:
    await sent(server, asking(0.0))
    [body] = server.bodies
    assert body["prompt"] == [1, 2, 3]
    assert (body["max_tokens"], body["ignore_eos"], body["temperature"]) == (5, True, 0.0)
    assert body["model"] == "m"
    assert body["stream_options"] == {"include_usage": True}


async def test_a_refusal_belongs_to_its_request_alone(server: Server) -> None:
    good = server.answer

    async def refuse_first(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if len(server.bodies) == 1:
            return web.json_response({"error": {"message": "prompt too long"}}, status=400)
        return await good(request, body)

    server.answer = refuse_first
    _, outcomes = await sent(server, asking(0.0, 0.05))
    assert outcomes[0].error == "HTTP 400: prompt too long"
    assert outcomes[0].first_token_s != outcomes[0].first_token_s
    assert outcomes[1].error is None


async def test_an_answer_that_breaks_off_is_an_error(server: Server) -> None:
    server.answer = answer_with([["a"]], usage=None)
    _, [outcome] = await sent(server, asking(0.0))
    assert outcome.error == "the answer broke off: no usage came"


async def test_an_error_within_the_stream_is_an_error(server: Server) -> None:
    async def fails(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(event({"error": {"message": "engine died"}}))
        return response

    server.answer = fails
    _, [outcome] = await sent(server, asking(0.0))
    assert outcome.error is not None
    assert "engine died" in outcome.error


async def test_no_server_is_an_error_of_each_request() -> None:
    nobody = Server()
    nobody.url = "http://127.0.0.1:9"
    _, outcomes = await sent(nobody, asking(0.0, 0.0))
    assert [o.error for o in outcomes] == ["connection refused"] * 2


async def test_a_reset_in_mid_stream_keeps_what_came_before(server: Server) -> None:
    async def reset(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(event({"choices": [{"text": "a"}]}))
        await asyncio.sleep(0.02)
        assert request.transport is not None
        request.transport.abort()
        return response

    server.answer = reset
    _, [outcome] = await sent(server, asking(0.0))
    assert outcome.error == "connection reset in mid-stream"
    assert outcome.first_token_s == outcome.first_token_s


async def test_a_reset_before_the_first_byte(server: Server) -> None:
    async def reset(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    server.answer = reset
    _, [outcome] = await sent(server, asking(0.0))
    assert outcome.error == "connection reset before the first chunk"


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (429, '{"error": {"message": "slow down", "code": 429}}', "HTTP 429: slow down"),
        (500, "<html>oops</html>", "HTTP 500: <html>oops</html>"),
        (503, "", "HTTP 503: no reason"),
    ],
)
async def test_what_the_server_says_is_kept(
    server: Server, status: int, body: str, said: str
) -> None:
    async def refuse(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=status, text=body)

    server.answer = refuse
    _, [outcome] = await sent(server, asking(0.0))
    assert outcome.error == said


async def test_a_malformed_chunk_is_an_error(server: Server) -> None:
    async def garble(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(event(b'{"choices": [{"text": '))
        return response

    server.answer = garble
    _, [outcome] = await sent(server, asking(0.0))
    assert outcome.error is not None
    assert outcome.error.startswith("malformed chunk: ")


async def test_a_slow_first_byte_is_a_long_ttft_and_nothing_else(server: Server) -> None:
    quick = server.answer

    async def slow(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return await quick(request, body)

    server.answer = slow
    _, [outcome] = await sent(server, asking(0.0))
    assert outcome.error is None
    assert outcome.first_token_s - outcome.sent_s >= 0.3
    assert sum(outcome.itl_s) < 0.3


async def test_an_empty_first_chunk_counts_as_the_first_token(server: Server) -> None:
    """As in `vllm bench serve`: special tokens have no text, and are tokens all the same."""
    server.answer = answer_with([[""], ["b"]], usage=2)
    _, [outcome] = await sent(server, asking(0.0))
    assert len(outcome.itl_s) == 1
    assert outcome.itl_s[0] >= 0.005


async def test_an_answer_of_one_token_ends_with_its_first_chunk(server: Server) -> None:
    server.answer = answer_with([["a"]], usage=1)
    _, [outcome] = await sent(server, asking(0.0))
    assert (outcome.output_tokens, outcome.itl_s) == (1, [])
    assert outcome.end_s == outcome.first_token_s


async def test_an_answer_without_a_chunk_is_an_error(server: Server) -> None:
    server.answer = answer_with([], usage=0)
    _, [outcome] = await sent(server, asking(0.0))
    assert outcome.error == "the answer was empty: no chunk came"


async def test_pings_line_ends_and_torn_pieces_change_nothing(server: Server) -> None:
    async def torn(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        usage = {"completion_tokens": 2, "prompt_tokens": 3}
        whole = (
            b": ping\r\n\r\n"
            + event({"choices": [{"text": "a"}]}).replace(b"\n", b"\r\n")
            + event({"choices": [{"text": "b"}], "usage": None})
            + event({"choices": [], "usage": usage})
            + event(b"[DONE]")
        )
        for at in range(0, len(whole), 7):
            await response.write(whole[at : at + 7])
            await asyncio.sleep(0.001)
        return response

    server.answer = torn
    _, [outcome] = await sent(server, asking(0.0))
    assert outcome.error is None
    assert (outcome.output_tokens, len(outcome.itl_s)) == (2, 1)


async def test_a_stream_longer_than_any_buffer_is_read_as_it_comes(server: Server) -> None:
    """A client that stops reading at 64 KiB would see the server's waiting as its own speed."""
    n, gap_s = 400, 0.001

    async def flood(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(n):
            await response.write(event({"choices": [{"text": "x" * 1000}]}))
            await asyncio.sleep(gap_s)
        await response.write(
            event({"choices": [], "usage": {"completion_tokens": n, "prompt_tokens": 3}})
        )
        return response

    server.answer = flood
    _, [outcome] = await sent(server, asking(0.0))
    assert len(outcome.itl_s) == n - 1
    assert float(np.median(outcome.itl_s)) >= gap_s / 2


def conversation(think_s: float) -> list[Request]:
    first = Request(0.0, [1, 2, 3], 2)
    second = Request(0.5, [1, 2, 3, 0, 0, 4], 2, after=0, think_s=think_s, answers=((3, 0),))
    return [first, second]


async def test_a_later_turn_follows_the_answer_and_holds_it(server: Server) -> None:
    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for token in (70, 71):
            choice = {"text": "x"} | ({"token_ids": [token]} if "return_token_ids" in body else {})
            await response.write(event({"choices": [choice]}))
        usage = {"completion_tokens": 2, "prompt_tokens": len(body["prompt"])}
        await response.write(event({"choices": [], "usage": usage}))
        return response

    server.answer = answer
    _, [first, second] = await sent(server, conversation(think_s=0.05))
    assert [body["prompt"] for body in server.bodies] == [[1, 2, 3], [1, 2, 3, 70, 71, 4]]
    assert second.scheduled_s == pytest.approx(first.end_s + 0.05)
    assert second.sent_s >= second.scheduled_s
    assert (first.error, second.error) == (None, None)


async def test_nothing_follows_a_turn_that_failed(server: Server) -> None:
    async def refuse(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=500)

    server.answer = refuse
    third = Request(1.0, [1], 2, after=1)
    _, outcomes = await sent(server, [*conversation(0.0), third])
    assert [o.error for o in outcomes] == ["HTTP 500: no reason", NOT_SENT, NOT_SENT]
    assert len(server.bodies) == 1


async def test_a_silent_server_times_out(server: Server) -> None:
    async def silent(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    server.answer = silent
    _, [outcome] = await sent(server, asking(0.0), timeout_s=0.2)
    assert outcome.error == "timed out before the first chunk"


async def test_closed_loop_never_exceeds_its_concurrency(server: Server) -> None:
    _, outcomes = await sent(server, asking(*[0.0] * 7), concurrency=2)
    for outcome in outcomes:
        others = [o for o in outcomes if o.sent_s <= outcome.sent_s < o.end_s]
        assert len(others) <= 2
    assert all(o.sent_s - o.scheduled_s < 0.005 for o in outcomes)


async def test_it_works_in_a_notebook_whose_thread_has_an_event_loop() -> None:
    load = send("http://127.0.0.1:9", "m", asking(0.0))
    assert [o.error for o in load.outcomes] == ["connection refused"]


async def test_several_processes_send_one_schedule_and_merge_one_result(server: Server) -> None:
    scheduled_s = [0.05 * i for i in range(12)]
    requests = [replace(r, output_tokens=i + 1) for i, r in enumerate(asking(*scheduled_s))]
    load = await asyncio.to_thread(send, server.url, "m", requests, processes=3)
    assert load.processes == 3
    assert [o.request_id for o in load.outcomes] == list(range(12))
    assert [o.scheduled_s for o in load.outcomes] == scheduled_s
    assert all(o.error is None and o.sent_s >= o.scheduled_s for o in load.outcomes)
    # Each arrived at the server in its turn, on one clock.
    arrived = {
        body["max_tokens"]: at for body, at in zip(server.bodies, server.received_s, strict=True)
    }
    assert all(arrived[i + 1] >= load.start_s + at for i, at in enumerate(scheduled_s))
    assert load.lag_p99_s >= 0
    assert 0 < load.cpu_share <= 1.5


async def test_processes_share_the_users_of_a_closed_loop(server: Server) -> None:
    load = await asyncio.to_thread(
        send, server.url, "m", asking(*[0.0] * 12), concurrency=3, processes=2
    )
    for outcome in load.outcomes:
        others = [o for o in load.outcomes if o.sent_s <= outcome.sent_s < o.end_s]
        assert len(others) <= 3


async def test_a_conversation_stays_in_one_process(server: Server) -> None:
    async def refuse(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=500)

    server.answer = refuse
    requests = [Request(0.0, [9], 1), *conversation(0.0), Request(0.1, [8], 1)]
    requests[2] = replace(requests[2], after=1, answers=((3, 1),))
    load = await asyncio.to_thread(send, server.url, "m", requests, processes=2)
    assert [o.error == NOT_SENT for o in load.outcomes] == [False, False, True, False]


async def test_progress_reaches_the_end(server: Server) -> None:
    said: list[tuple[str, float]] = []
    await asyncio.to_thread(
        send, server.url, "m", asking(0.0, 0.0), on_progress=lambda *one: said.append(one)
    )
    assert [share for _, share in said] == sorted(share for _, share in said)
    assert said[-1] == ("2 of 2 requests answered", 1.0)
