"""The gateway in front of servers that fail as they are told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio

from serving.gateway.fleet import Replica
from serving.gateway.keys import new_key
from serving.gateway.server import Gateway
from serving.gateway.streams import delta, events
from tests.serving.gateway.upstream import Upstream, gateway, upstream
from tests.serving.redis_server import redis_server

Json = dict[str, Any]
CACHE = {"result_cache": {}}


@pytest_asyncio.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as redis:
        yield redis.url.removesuffix("/0") + "/3"


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Json:
    """Settings of either store."""
    if request.param == "memory":
        return {}
    return {"redis_url": request.getfixturevalue("redis_url")}


async def ask(
    client: aiohttp.ClientSession,
    made: Gateway,
    text: str = "one two three",
    *,
    headers: Json | None = None,
    path: str = "/v1/chat/completions",
    **fields: Any,
) -> tuple[int, Any, Any]:
    """(status, headers, body): events of a stream, else JSON."""
    body = {"messages": [{"role": "user", "content": text}]} | fields
    url = f"http://127.0.0.1:{made.port}{path}"
    async with client.post(url, json=body, headers=headers) as answer:
        raw = await answer.read()
        if answer.content_type == "text/event-stream":
            return answer.status, answer.headers, events([raw])
        return answer.status, answer.headers, orjson.loads(raw)


def said(found: Any) -> str:
    if isinstance(found, list):
        return "".join(delta(event) for event in found)
    return str(found["choices"][0]["message"]["content"])


def counted(made: Gateway, name: str, **labels: str) -> float:
    return made.metrics.registry.get_sample_value(f"gateway_{name}", labels) or 0.0


async def until(holds: Any, limit_s: float = 10.0) -> None:
    async with asyncio.timeout(limit_s):
        while not holds():
            await asyncio.sleep(0.01)


async def test_an_answer_comes_through_whole_and_as_a_stream(
    client: aiohttp.ClientSession,
) -> None:
    async with upstream() as vllm, gateway(vllm.url) as made:
        status, headers, whole = await ask(client, made, headers={"X-Request-Id": "mine"})
        assert (status, said(whole), headers["X-Request-Id"]) == (200, "one two three", "mine")
        status, headers, found = await ask(client, made, stream=True)
        assert (status, said(found)) == (200, "one two three")
        assert headers["Content-Type"].startswith("text/event-stream")
        assert all(event["choices"] for event in found)
        *_, usage = (await ask(client, made, stream=True, stream_options={"include_usage": True}))[
            2
        ]
        assert usage["usage"]["completion_tokens"] == 3
        assert counted(made, "tokens_total", kind="completion") == 6.0
        assert counted(made, "requests_total", route="chat", status="200", track="blue") == 3


async def test_tokens_are_handed_on_as_they_come(client: aiohttp.ClientSession) -> None:
    async with upstream(pace_s=0.2) as vllm, gateway(vllm.url) as made:
        body = {"messages": [{"role": "user", "content": "a b c d"}], "stream": True}
        url = f"http://127.0.0.1:{made.port}/v1/chat/completions"
        seen = []
        async with client.post(url, json=body) as answer:
            async for piece in answer.content.iter_any():
                seen += [(time.monotonic(), delta(event)) for event in events([piece])]
        at = {text.strip(): when for when, text in seen if text}
        assert at["d"] - at["a"] > 0.4


async def test_a_replica_that_fails_before_the_first_token_is_not_seen(
    client: aiohttp.ClientSession,
) -> None:
    async with upstream() as bad, upstream() as good, gateway(bad.url, good.url) as made:
        await until(lambda: made.fleet.ready("blue") == 2)
        for failing in ({"status": 500}, {"status": 503}, {"breaks_after": 0}):
            for name, value in failing.items():
                setattr(bad, name, value)
            for stream in (False, True):
                for _ in range(3):
                    if failing == {"breaks_after": 0} and not stream:
                        continue
                    status, _, found = await ask(client, made, stream=stream)
                    assert (status, said(found)) == (200, "one two three")
            bad.status, bad.breaks_after = 200, None
        assert counted(made, "retries_total") > 0


async def test_a_stream_that_breaks_says_so_and_is_not_begun_again(
    client: aiohttp.ClientSession,
) -> None:
    async with upstream() as vllm, upstream() as other, gateway(vllm.url, other.url) as made:
        vllm.breaks_after = other.breaks_after = 2
        _, _, found = await ask(client, made, stream=True, conversation="c")
        assert said(found) == "one two"
        assert found[-1]["error"]["code"] == "upstream_failed"
        assert len(vllm.chats) + len(other.chats) == 1
        assert counted(made, "requests_total", route="chat", status="502", track="blue") == 1
        # What was broken off is no turn of the conversation.
        vllm.breaks_after = other.breaks_after = None
        await ask(client, made, "again", conversation="c")
        sent = [[m["content"] for m in body["messages"]] for body in vllm.chats + other.chats]
        assert ["again"] in sent


async def test_a_stream_that_errs_is_counted_as_failed(client: aiohttp.ClientSession) -> None:
    async with upstream(errs_after=1) as vllm, gateway(vllm.url) as made:
        _, _, found = await ask(client, made, stream=True)
        assert any("error" in event for event in found)
        assert counted(made, "requests_total", route="chat", status="502", track="blue") == 1


async def test_time_outs_are_told_apart(client: aiohttp.ClientSession) -> None:
    limits = {"first_byte_s": 0.3, "idle_s": 0.3, "drain_s": 0.1}
    async with upstream() as vllm, gateway(vllm.url, timeouts=limits) as made:
        vllm.first_s = 30.0
        status, _, found = await ask(client, made, stream=True)
        assert (status, found["error"]["code"]) == (504, "timeout")
        vllm.first_s, vllm.silent_after = 0.0, 2
        status, _, found = await ask(client, made, stream=True)
        assert (status, said(found), found[-1]["error"]["code"]) == (200, "one two", "timeout")
        await until(lambda: vllm.given_up == 2)
        assert counted(made, "timeouts_total", track="blue") == 2


async def test_only_a_stream_has_to_begin_soon_and_nothing_may_take_for_ever(
    client: aiohttp.ClientSession,
) -> None:
    limits = {"first_byte_s": 0.2, "idle_s": 0.2, "total_s": 0.8, "drain_s": 0.1}
    async with upstream() as vllm, gateway(vllm.url, timeouts=limits) as made:
        vllm.first_s = 0.4
        assert (await ask(client, made))[0] == 200
        vllm.first_s, vllm.pace_s = 0.0, 0.1
        for stream in (False, True):
            status, _, found = await ask(client, made, "word " * 30, stream=stream)
            last = found[-1] if stream else found
            assert (status, last["error"]["code"]) == (200 if stream else 504, "timeout")


async def test_a_machine_that_is_gone_is_passed_over(client: aiohttp.ClientSession) -> None:
    # An address of documentation (RFC 5737), which nobody answers.
    limits = {"connect_s": 0.3, "drain_s": 0.1}
    async with upstream() as vllm, gateway(vllm.url, timeouts=limits) as made:
        gone = Replica("http://192.0.2.1:8000", "blue", 99)
        gone.state = "up"
        made.fleet.replicas["blue"].append(gone)
        for _ in range(3):
            assert (await ask(client, made))[0] == 200
        assert gone.state == "down"


async def test_replicas_that_are_full_are_said_to_be(client: aiohttp.ClientSession) -> None:
    spec = {"max_outstanding": 1}
    async with upstream(first_s=0.5) as vllm, gateway(vllm.url, spec=spec) as made:
        found = await asyncio.gather(*(ask(client, made) for _ in range(3)))
        assert sorted(status for status, _, _ in found) == [200, 503, 503]
        full = next(one for one in found if one[0] == 503)
        assert full[1]["Retry-After"] == "1"
        assert full[2]["error"]["code"] == "all_replicas_full"


async def test_a_replica_that_keeps_failing_is_left_alone_and_tried_again(
    client: aiohttp.ClientSession,
) -> None:
    health = {"every_s": 0.05, "breaker_failures": 2, "breaker_s": 0.4}
    async with upstream() as vllm, gateway(vllm.url, health=health) as made:
        vllm.status = 500
        codes = [(await ask(client, made))[2]["error"]["code"] for _ in range(4)]
        assert codes == ["upstream_failed"] * 2 + ["no_replica"] * 2
        assert len(vllm.chats) == 2
        vllm.status = 200
        await asyncio.sleep(0.5)
        assert (await ask(client, made))[0] == 200


async def test_a_replica_that_died_comes_back_warm(client: aiohttp.ClientSession) -> None:
    async with upstream() as vllm, gateway(vllm.url) as made:
        vllm.healthy = False
        await until(lambda: made.fleet.ready("blue") == 0)
        async with client.get(f"http://127.0.0.1:{made.port}/readyz") as answer:
            assert answer.status == 503
        warm_ups = len(vllm.asked)
        vllm.healthy = True
        await until(lambda: made.fleet.ready("blue") == 1)
        assert len(vllm.asked) == warm_ups + 1


async def test_a_replica_that_cannot_answer_is_never_ready(client: aiohttp.ClientSession) -> None:
    async with upstream() as good, upstream(status=500) as bad, gateway(good.url, bad.url) as made:
        await asyncio.sleep(0.3)
        assert made.fleet.ready("blue") == 1
        for _ in range(4):
            assert (await ask(client, made))[0] == 200


async def test_an_answer_that_nobody_waits_for_is_given_up(client: aiohttp.ClientSession) -> None:
    async with upstream(pace_s=0.05) as vllm, gateway(vllm.url) as made:
        body = {"messages": [{"role": "user", "content": "a " * 500}], "stream": True}
        url = f"http://127.0.0.1:{made.port}/v1/chat/completions"
        answer = await client.post(url, json=body)
        await answer.content.readany()
        answer.close()
        await until(lambda: vllm.given_up == 1)
        await until(lambda: counted(made, "aborted_total", track="blue") == 1)
        assert counted(made, "requests_in_flight") == 0
        assert made.fleet.replicas["blue"][0].outstanding == 0


async def test_a_conversation_is_remembered_for_its_tenant_alone(
    client: aiohttp.ClientSession, store: Json
) -> None:
    (shop, kept), (bank, kept_too) = new_key(), new_key()
    keys = {"shop": (kept,), "bank": (kept_too,)}
    async with upstream(answer="yes") as vllm, gateway(vllm.url, api_keys=keys, **store) as made:
        mine = {"Authorization": f"Bearer {shop}"}
        other = {"Authorization": f"Bearer {bank}"}
        name = f"c-{time.time()}"
        await ask(client, made, "first", conversation=name, headers=mine)
        await ask(client, made, "second", conversation=name, headers=mine, stream=True)
        await ask(client, made, "third", conversation=name, headers=mine)
        assert [m["content"] for m in vllm.chats[-1]["messages"]] == [
            *("first", "yes", "second", "yes", "third")
        ]
        await ask(client, made, "spy", conversation=name, headers=other)
        assert [m["content"] for m in vllm.chats[-1]["messages"]] == ["spy"]
        url = f"http://127.0.0.1:{made.port}/v1/conversations/{name}"
        async with client.delete(url, headers=mine) as answer:
            assert answer.status == 204
        await ask(client, made, "anew", conversation=name, headers=mine)
        assert [m["content"] for m in vllm.chats[-1]["messages"]] == ["anew"]
        for wrong in ({}, {"Authorization": "Bearer sk-wrong"}):
            status, _, found = await ask(client, made, headers=wrong)
            assert (status, found["error"]["code"]) == (401, "invalid_api_key")


async def test_a_hot_question_is_answered_while_the_model_is_down(
    client: aiohttp.ClientSession, store: Json
) -> None:
    (shop, kept), (bank, kept_too) = new_key(), new_key()
    keys = {"shop": (kept,), "bank": (kept_too,)}
    async with (
        upstream() as vllm,
        gateway(vllm.url, api_keys=keys, spec=CACHE, **store) as made,
    ):
        mine = {"Authorization": f"Bearer {shop}"}
        other = {"Authorization": f"Bearer {bank}"}
        text = f"what is {time.time()} ?"
        fields: Json = {"temperature": 0, "max_tokens": 50}
        _, headers, _ = await ask(client, made, text, headers=mine, stream=True, **fields)
        assert "X-Cache" not in headers
        vllm.healthy = False
        vllm.status = 500
        await until(lambda: made.fleet.ready("blue") == 0)
        for stream in (True, False):
            status, headers, found = await ask(
                client, made, text, headers=mine, stream=stream, **fields
            )
            assert (status, headers["X-Cache"], said(found)) == (200, "hit", text)
        unlike: list[tuple[Json, Json]] = [
            (other, fields),
            (mine, {}),
            (mine, fields | {"max_tokens": 51}),
            (mine | {"Cache-Control": "no-cache"}, fields),
        ]
        for headers_, asked in unlike:
            status, _, _ = await ask(client, made, text, headers=headers_, **asked)
            assert status == 503
        assert counted(made, "answer_cache_total", result="hit") == 2


async def test_a_cached_answer_is_a_turn_of_the_conversation(
    client: aiohttp.ClientSession, store: Json
) -> None:
    async with upstream(answer="four") as vllm, gateway(vllm.url, spec=CACHE, **store) as made:
        text, name = f"2+2 {time.time()}", f"c-{time.time()}"
        await ask(client, made, text, temperature=0)
        _, headers, _ = await ask(client, made, text, temperature=0, conversation=name)
        assert headers["X-Cache"] == "hit"
        _, headers, _ = await ask(client, made, text, temperature=0, conversation=name)
        assert "X-Cache" not in headers  # the same words, but after a turn another question
        assert [m["content"] for m in vllm.chats[-1]["messages"]] == [text, "four", text]


async def test_a_tenant_that_asks_too_often_is_told_when_to_come_back(
    client: aiohttp.ClientSession, store: Json
) -> None:
    key, kept = new_key()
    limits = {"requests_per_minute": 2}
    tenant = f"t{time.time()}"
    async with (
        upstream() as vllm,
        gateway(vllm.url, api_keys={tenant: (kept,)}, limits=limits, **store) as made,
    ):
        mine = {"Authorization": f"Bearer {key}"}
        found = [await ask(client, made, headers=mine) for _ in range(6)]
        # A minute may end meanwhile.
        assert sum(status == 429 for status, _, _ in found) >= 2
        refused = next(one for one in found if one[0] == 429)
        assert 0 < int(refused[1]["Retry-After"]) <= 60
        assert refused[2]["error"]["code"] == "rate_limit_exceeded"


async def test_what_is_too_large_or_malformed_or_nowhere_is_refused_as_openai_does(
    client: aiohttp.ClientSession,
) -> None:
    limits = {"body_bytes": 1000}
    async with upstream() as vllm, gateway(vllm.url, limits=limits) as made:
        url = f"http://127.0.0.1:{made.port}"

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b"x" * 100

        for data, status in ((b"x" * 2000, 413), (chunks(), 413), (b"{", 400), (b"\xff", 400)):
            async with client.post(f"{url}/v1/chat/completions", data=data) as answer:
                assert answer.status == status
                assert set((await answer.json())["error"]) == {"message", "type", "param", "code"}
        for method, path, status in (
            ("GET", "/v1/chat/completions", 405),
            ("GET", "/v1/nothing", 404),
            ("GET", "/v1/models/other", 404),
        ):
            async with client.request(method, url + path) as answer:
                assert answer.status == status
                assert "error" in await answer.json()
        assert vllm.chats == []


async def test_streams_end_before_a_gateway_that_is_stopped(client: aiohttp.ClientSession) -> None:
    async with upstream(pace_s=0.05) as vllm:
        patient = {"drain_s": 10.0}
        async with gateway(vllm.url, timeouts=patient) as made:
            text = "word " * 20
            asked = [asyncio.create_task(ask(client, made, text, stream=True)) for _ in range(8)]
            await until(lambda: vllm.running == 8)
            port = made.port
        for status, _, found in await asyncio.gather(*asked):
            assert (status, said(found)) == (200, text)
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get(f"http://127.0.0.1:{port}/healthz")


async def test_load_is_spread_and_outstanding_requests_come_back_to_none(
    client: aiohttp.ClientSession,
) -> None:
    slow = {"first_s": 0.02}
    async with upstream(**slow) as a, upstream(**slow) as b, gateway(a.url, b.url) as made:
        await until(lambda: made.fleet.ready("blue") == 2)
        await asyncio.gather(*(ask(client, made, stream=True) for _ in range(60)))
        served: list[Upstream] = [a, b]
        assert all(20 <= len(one.chats) <= 40 for one in served)
        assert all(r.outstanding == 0 for r in made.fleet.replicas["blue"])


async def test_a_name_is_every_address_behind_it(client: aiohttp.ClientSession) -> None:
    async with upstream() as vllm:
        by_name = {"blue": (f"dns+http://localhost:{vllm.port}",)}
        async with gateway(vllm.url, tracks=by_name) as made:
            assert any("127.0.0.1" in r.url for r in made.fleet.replicas["blue"])
            assert (await ask(client, made))[0] == 200
