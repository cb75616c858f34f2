"""What every store must do, on a real Redis and on files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from serving.errors import InputError
from serving.gateway.rollout import RolloutState, Store, StoreError, open_store
from serving.gateway.rollout.counts import Counts
from serving.gateway.rollout.state import start
from serving.gateway.rollout.store import COUNTS, KEPT, Report, change
from tests.serving.redis_server import RedisServer

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FIRST = RolloutState(version=1, stable="blue", since=NOW)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    started = RedisServer(tmp_path_factory.mktemp("redis"))
    yield started
    started.kill()


@pytest.fixture(params=["redis", "file"])
async def opened(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Callable[[], Store]]:
    """Opens the same store again and again, as other processes would."""
    stores: list[Store] = []
    if request.param == "redis":
        url = request.getfixturevalue("server").url
        from redis.asyncio import Redis

        client = Redis.from_url(url)
        await client.flushall()
        await client.aclose()

    def again() -> Store:
        if request.param == "redis":
            stores.append(open_store(url))
        else:
            stores.append(open_store(None, tmp_path / "rollout.json"))
        return stores[-1]

    yield again
    for store in stores:
        await store.close()


def counted(answered: int, failed: int = 0) -> Counts:
    counts = Counts(answered=answered, failed=failed)
    for _ in range(answered):
        counts.observe("ttft", 0.05)
    return counts


def report(gateway: str, period: int = 0, at_s: float = 0.0, **tracks: Counts) -> Report:
    totals = {period: COUNTS.dump_json(tracks)} if tracks else {}
    return Report(gateway, at_s, {"blue": 2, "green": 1}, totals)


async def test_what_is_saved_is_there_for_others(opened: Callable[[], Store]) -> None:
    mine, others = opened(), opened()
    assert await mine.load() is None
    assert await mine.save(FIRST, None)
    assert await others.load() == FIRST
    assert not await others.save(FIRST, None)
    second = start(FIRST, "green", NOW)
    assert await others.save(second, 1)
    assert not await mine.save(start(FIRST, "red", NOW), 1)
    assert await mine.load() == second


async def test_of_many_at_once_one_wins(opened: Callable[[], Store]) -> None:
    stores = [opened() for _ in range(12)]
    await stores[0].save(FIRST, None)
    written = [start(FIRST, f"track-{i}", NOW) for i in range(len(stores))]
    won = await asyncio.gather(*(s.save(w, 1) for s, w in zip(stores, written, strict=True)))
    assert sum(won) == 1
    assert await stores[0].load() == written[won.index(True)]


async def test_two_operators_never_overwrite_one_another(opened: Callable[[], Store]) -> None:
    stores = [opened() for _ in range(8)]
    await stores[0].save(FIRST, None)

    async def begin(i: int) -> bool:
        try:
            await change(stores[i], lambda state: start(state, f"track-{i}", NOW))
        except InputError:
            return False
        return True

    began = await asyncio.gather(*(begin(i) for i in range(len(stores))))
    assert sum(began) == 1
    state = await stores[0].load()
    assert state is not None
    assert (state.version, state.candidate) == (2, f"track-{began.index(True)}")


async def test_changes_by_all_are_all_kept(opened: Callable[[], Store]) -> None:
    stores = [opened() for _ in range(6)]
    await stores[0].save(FIRST, None)

    def note(state: RolloutState) -> RolloutState:
        return state.model_copy(update={"version": state.version + 1, "looks": state.looks + 1})

    await asyncio.gather(*(change(store, note) for store in stores))
    state = await stores[0].load()
    assert state is not None
    assert (state.version, state.looks) == (7, 6)


async def test_gateways_add_up_and_a_repeated_report_counts_once(
    opened: Callable[[], Store],
) -> None:
    one, two = opened(), opened()
    await one.report(report("a", 3, blue=counted(5, 1)))
    await two.report(report("b", 3, blue=counted(7), green=counted(0, 2)))
    await two.report(report("b", 3, blue=counted(8), green=counted(0, 2)))
    await two.report(report("b", 3, blue=counted(8), green=counted(0, 2)))
    await one.report(report("a", 4, blue=counted(1)))
    found = await opened().counts(3)
    assert {t: (c.answered, c.failed, c.requests) for t, c in found.items()} == {
        "blue": (13, 1, 14),
        "green": (0, 2, 2),
    }
    assert sum(found["blue"].buckets["ttft"]) == 13
    assert await one.counts(9) == {}


async def test_users_are_counted_once_over_gateways(opened: Callable[[], Store]) -> None:
    one, two = opened(), opened()

    def hit(gateway: str, names: range) -> Report:
        users = {f"user-{i}".encode() for i in names}
        return Report(gateway, 0.0, {}, {}, {7: {"green": users, "blue": {b"\xed\xb3\xa9"}}})

    for _ in range(3):
        await one.report(hit("a", range(200)))
    await two.report(hit("b", range(100, 300)))
    # Redis estimates: its standard error is 0.81 %.
    assert await one.users(7, "green") == pytest.approx(300, rel=0.03)
    assert await opened().users(7, "blue") == 1
    assert await one.users(8, "green") == 0


async def test_the_least_that_a_gateway_sees_is_healthy(opened: Callable[[], Store]) -> None:
    store = opened()
    assert await store.healthy(100.0) is None
    await store.report(Report("a", 100.0, {"blue": 3, "green": 2}))
    await store.report(Report("b", 110.0, {"blue": 2, "green": 2}))
    assert await store.healthy(111.0) == {"blue": 2, "green": 2}
    assert await store.healthy(135.0) == {"blue": 2, "green": 2}
    await store.report(Report("a", 150.0, {"blue": 3, "green": 0}))
    assert await store.healthy(151.0) == {"blue": 3, "green": 0}
    assert await store.healthy(10_000.0) is None
    assert await store.healthy(151.0) is None  # who is silent for hours is forgotten


async def test_a_change_needs_a_first_state(opened: Callable[[], Store]) -> None:
    with pytest.raises(InputError, match="no gateway has written a state"):
        await change(opened(), lambda state: state)


async def test_redis_that_is_down_is_one_error_without_the_password() -> None:
    store = open_store("redis://:secret@127.0.0.1:1/0")
    for work in (store.load(), store.save(FIRST, None), store.report(report("a")), store.counts(0)):
        with pytest.raises(StoreError, match=r"Redis at 127\.0\.0\.1:1 does not answer") as error:
            await work
        assert "secret" not in str(error.value)
    await store.close()


async def test_something_else_under_the_key_is_said(server: RedisServer) -> None:
    from redis.asyncio import Redis

    client = Redis.from_url(server.url)
    await client.flushall()
    await client.set("rollout:state", "{}")
    store = open_store(server.url)
    with pytest.raises(StoreError, match="holds something else"):
        await store.load()
    await client.delete("rollout:state")
    await client.set("rollout:counts:0", "x")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await store.counts(0)
    await client.aclose()
    await store.close()


async def test_a_file_that_is_none_of_ours_is_said(tmp_path: Path) -> None:
    (tmp_path / "rollout.json").write_text("{}")
    with pytest.raises(StoreError, match=r"rollout\.json"):
        await open_store(None, tmp_path / "rollout.json").load()
    with pytest.raises(StoreError, match="no/such"):
        await open_store(None, tmp_path / "no/such/rollout.json").save(FIRST, None)


async def test_a_torn_list_of_users_loses_the_last_one(tmp_path: Path) -> None:
    store = open_store(None, tmp_path / "r.json")
    await store.report(Report("a", 0.0, {}, {}, {1: {"green": {b"x", b"y"}}}))
    file = tmp_path / "r.json.d/users/1/green/a"
    os.truncate(file, file.stat().st_size - 3)
    assert await store.users(1, "green") == 1


async def test_old_counts_are_deleted(tmp_path: Path) -> None:
    store = open_store(None, tmp_path / "r.json")
    for period in (0, 5):
        await store.report(report("a", period, blue=counted(1)))
    assert await store.save(FIRST.model_copy(update={"period": KEPT + 3}), None)
    assert await store.counts(0) == {}
    assert list(await store.counts(5)) == ["blue"]


def test_a_store_must_be_named() -> None:
    with pytest.raises(InputError, match="no store is given"):
        open_store()
    with pytest.raises(InputError, match="URL of Redis"):
        open_store("http://127.0.0.1")
