"""Gateways that share a store: they add up, decide once, go back by themselves, and outlive Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from serving.errors import InputError
from serving.gateway.analysis import Analysis
from serving.gateway.rollout import Rollouts, RolloutState, Store, open_store, operate, status_of
from serving.gateway.rollout.state import promote, roll_back, start, switch
from serving.gateway.rollout.store import change
from tests.serving.redis_server import RedisServer

BEGAN_S = 1_800_000_000.0
RULE = Analysis(window_s=60, look_s=10, max_windows=3, min_requests=100, latency="ttft")


@dataclass
class World:
    """A clock, replicas, and gateways on stores of their own that lead to one place."""

    open: Callable[[], Store]
    seed: int = 0
    now_s: float = BEGAN_S
    healthy: dict[str, int] = field(default_factory=lambda: {"blue": 4, "green": 4})
    gateways: list[Rollouts] = field(default_factory=list)
    requests: dict[str, int] = field(default_factory=lambda: {"blue": 0, "green": 0})
    failing: dict[str, float] = field(default_factory=dict)
    slowdown: float = 1.0

    stores: list[Store] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def opened(self) -> Store:
        self.stores.append(self.open())
        return self.stores[-1]

    async def close(self) -> None:
        for store in self.stores:
            await store.close()

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.now_s, UTC)

    async def gateway(self) -> Rollouts:
        made = Rollouts(
            self.opened(), stable="blue", healthy=lambda: self.healthy, clock=lambda: self.now_s
        )
        await made.tick()
        self.gateways.append(made)
        return made

    async def change(self, transition: Callable[[RolloutState], RolloutState]) -> RolloutState:
        changed = await change(self.opened(), transition)
        await self.tick()
        return changed

    async def start(self, *shares: float, rule: Analysis = RULE, auto: bool = False) -> None:
        await self.change(
            lambda s: start(s, "green", self.now, shares=shares, rule=rule, auto_promote=auto)
        )

    async def tick(self) -> None:
        await asyncio.gather(*(gateway.tick() for gateway in self.gateways))

    async def serve(self, seconds: int, rps: int) -> None:
        """Conversations that nobody has had before, in turn at each gateway."""
        for _ in range(seconds):
            self.now_s += 1
            for i in range(rps):
                gateway = self.gateways[i % len(self.gateways)]
                key = f"{self.seed}-{self.now_s:.0f}-{i}"
                track = gateway.track_of(key)
                self.requests[track] += 1
                failed = bool(self.rng.random() < self.failing.get(track, 0.0))
                ttft_s = float(self.rng.lognormal(-2, 0.5))
                ttft_s *= self.slowdown if track == "green" else 1.0
                gateway.record(
                    track, key, failed, ttft_s=ttft_s, tpot_s=None, e2e_s=0.0, timed_out=False
                )
            await self.tick()
            if self.gateways[0].state.phase not in ("canary", "switched"):
                return

    @property
    def state(self) -> RolloutState:
        return self.gateways[0].state


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    started = RedisServer(tmp_path_factory.mktemp("redis"))
    yield started
    started.kill()


async def emptied(url: str) -> None:
    from redis.asyncio import Redis

    client = Redis.from_url(url)
    await client.flushall()
    await client.aclose()


@pytest.fixture(params=["redis", "file"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    url = request.getfixturevalue("server").url if request.param == "redis" else None
    if url is not None:
        await emptied(url)
    made = World(lambda: open_store(url, tmp_path / "rollout.json"))
    yield made
    await made.close()


@pytest.fixture
async def on_redis(server: RedisServer) -> AsyncIterator[World]:
    await emptied(server.url)
    made = World(lambda: open_store(server.url))
    yield made
    await made.close()


async def test_two_gateways_add_up_and_decide_once(world: World) -> None:
    one, two = await world.gateway(), await world.gateway()
    await world.start(0.3)
    version = world.state.version
    await world.serve(60, 20)
    await world.tick()
    assert one.state == two.state
    assert world.state.passed
    # A write for each of six looks, by whichever gateway was first.
    assert world.state.version == version + 6
    status = await status_of(world.opened(), world.state, world.now)
    seen = {track.track: track for track in status.tracks}
    assert {name: track.requests for name, track in seen.items()} == world.requests
    assert seen["green"].users_hit == pytest.approx(world.requests["green"], rel=0.03)
    assert seen["green"].ttft_mean_s == pytest.approx(np.exp(-2 + 0.125), rel=0.1)
    assert seen["green"].requests_needed == 0
    assert world.state.users_hit == pytest.approx(world.requests["green"], rel=0.05)


async def test_a_failing_canary_is_taken_back_at_the_first_looks(world: World) -> None:
    world.failing = {"blue": 0.002, "green": 0.3}
    await world.gateway()
    await world.start(0.01, 0.1)
    await world.serve(180, 100)
    print(f"taken back after {world.requests['green']} of {sum(world.requests.values())} requests")
    assert world.state.phase == "rolled_back"
    assert world.state.reason.startswith("worse: ")
    assert "failed (p = " in world.state.reason
    # A share of 1 % at 100 a second: 10 requests a look.
    assert world.requests["green"] <= 60
    before = world.requests["green"]
    world.now_s += 1
    await world.tick()
    assert {world.gateways[0].track_of(f"k{i}") for i in range(1000)} == {"blue"}
    assert world.requests["green"] == before


async def test_a_slow_canary_is_taken_back_once_there_are_enough_requests(world: World) -> None:
    world.slowdown = 2.0
    await world.gateway()
    await world.start(0.2)
    await world.serve(180, 40)
    assert world.state.phase == "rolled_back"
    assert "mean TTFT" in world.state.reason
    assert 100 <= world.requests["green"] <= 400


async def test_a_sound_canary_climbs_and_is_promoted(world: World) -> None:
    await world.gateway()
    await world.start(0.1, 0.5, auto=True)
    await world.serve(300, 40)
    assert (world.state.phase, world.state.stable) == ("promoted", "green")
    assert world.gateways[0].track_of("anybody") == world.gateways[0].stable == "green"
    assert world.now_s - BEGAN_S == pytest.approx(120, abs=2)
    await world.change(lambda s: roll_back(s, "after all", world.now))
    assert world.gateways[0].track_of("anybody") == "blue"


async def test_too_few_replicas_are_not_promoted_by_themselves(world: World) -> None:
    world.healthy["green"] = 1
    await world.gateway()
    await world.start(0.5, auto=True)
    await world.serve(70, 40)
    assert world.state.phase == "canary"
    assert world.state.passed
    world.healthy["green"] = 4
    await world.serve(1, 1)
    assert world.state.phase == "promoted"


async def test_no_data_is_held_and_then_taken_back(world: World) -> None:
    await world.gateway()
    await world.start(0.1)
    await world.serve(179, 1)
    assert (world.state.phase, world.state.verdict) == ("canary", "undecided")
    await world.serve(1, 1)
    assert world.state.phase == "rolled_back"
    assert world.state.reason.startswith("undecided after 3 windows of 60 s: ")


async def test_a_canary_that_loses_all_replicas_has_failed(world: World) -> None:
    one, two = await world.gateway(), await world.gateway()
    await world.start(0.5)
    world.healthy["green"] = 0
    world.now_s += 1
    await world.tick()
    assert world.state.phase == "rolled_back"
    assert world.state.reason == "green has no healthy replica left"
    assert {g.track_of(f"k{i}") for g in (one, two) for i in range(100)} == {"blue"}


async def test_a_gateway_that_begins_waits_for_its_first_sight_of_replicas(world: World) -> None:
    await world.gateway()
    await world.start(0.5)
    world.healthy = {"blue": 0, "green": 0}
    world.gateways = []
    await world.gateway()
    world.healthy["blue"] = 4
    await world.tick()
    assert world.state.phase == "canary"
    assert {world.gateways[0].track_of(f"k{i}") for i in range(100)} == {"blue"}
    world.healthy["green"] = 4
    await world.tick()
    assert {world.gateways[0].track_of(f"k{i}") for i in range(100)} == {"blue", "green"}


async def test_nothing_is_taken_back_to_nobody(world: World) -> None:
    world.failing = {"green": 0.5, "blue": 0.0}
    await world.gateway()
    await world.change(lambda s: switch(s, "green", world.now, rule=RULE))
    world.healthy["blue"] = 0
    await world.serve(20, 20)
    assert world.state.phase == "switched"
    assert world.gateways[0].track_of("x") == "green"


async def test_a_switch_moves_all_at_once_and_back(world: World) -> None:
    one, two = await world.gateway(), await world.gateway()
    await world.change(lambda s: switch(s, "green", world.now))
    assert {g.track_of(f"k{i}") for g in (one, two) for i in range(100)} == {"green"}
    await world.serve(200, 2)
    assert world.state.phase == "switched"
    await world.change(lambda s: roll_back(s, "", world.now))
    assert {g.track_of(f"k{i}") for g in (one, two) for i in range(100)} == {"blue"}


async def test_a_switch_that_is_watched_goes_back(world: World) -> None:
    await world.gateway()
    world.failing = {"green": 0.2}
    for second in range(30):
        world.now_s += 1
        for i in range(10):
            world.gateways[0].record("blue", f"{second}-{i}", False, ttft_s=0.1, e2e_s=0.0)
    await world.change(lambda s: switch(s, "green", world.now, rule=RULE))
    await world.serve(60, 20)
    assert world.state.phase == "rolled_back"
    assert "against 0 of 300 (0.00%) failed" in world.state.reason


async def test_what_began_before_the_split_is_not_compared(world: World) -> None:
    gateway = await world.gateway()
    world.now_s += 100
    await world.start(0.5)
    world.now_s += 5
    gateway.record("blue", "u", True, e2e_s=30.0, timed_out=True)
    gateway.record("blue", "u", True, e2e_s=4.0, timed_out=True)
    gateway.record("blue", "u", False, e2e_s=4.0)
    await gateway.tick()
    counts = (await world.opened().counts(gateway.state.period))["blue"]
    assert (counts.answered, counts.failed, counts.timed_out) == (1, 1, 1)


async def test_a_gateway_that_is_killed_in_mid_rollout_goes_on(world: World) -> None:
    await world.gateway()
    await world.start(0.2, 0.5)
    await world.serve(30, 20)
    before = world.state
    world.gateways = []
    await world.gateway()
    assert world.state == before
    sticky = [f"k{i}" for i in range(500)]
    again = await world.gateway()
    assert [again.track_of(k) for k in sticky] == [world.gateways[0].track_of(k) for k in sticky]
    await world.serve(30, 20)
    # Those that the first one counted were not lost: its 30 s hold a half of what is needed.
    assert (world.state.step, world.state.share) == (1, 0.5)


async def test_a_track_that_the_gateway_does_not_have_is_never_chosen(world: World) -> None:
    await world.gateway()
    await world.change(lambda s: switch(s, "green", world.now))
    await world.change(lambda s: promote(s, world.now))
    world.healthy = {"blue": 2}
    world.gateways = []
    made = await world.gateway()
    assert made.state.stable == "green"
    assert made.track_of("x") == made.stable == "blue"
    with pytest.raises(InputError, match=r"stable\(='red'\)"):
        Rollouts(world.opened(), stable="red", healthy=lambda: world.healthy)


async def test_operators_are_refused_what_the_replicas_cannot_bear(world: World) -> None:
    store = world.opened()
    with pytest.raises(InputError, match="no gateway has told"):
        await operate.start(store, "green", shares=(0.1,), rule=RULE)
    import time

    world.now_s = time.time()
    world.healthy = {"blue": 4, "green": 0, "red": 1}
    await world.gateway()
    for work, says in (
        (lambda: operate.start(store, "green", shares=(0.1,), rule=RULE), "has 0 healthy"),
        (
            lambda: operate.start(store, "gren", shares=(0.1,), rule=RULE),
            "none of blue, green, red",
        ),
        (lambda: operate.switch(store, "red"), "red has 1 healthy replicas and needs 4"),
        (lambda: operate.promote(store), "nothing to promote"),
    ):
        with pytest.raises(InputError, match=says):
            await work()
    state = await operate.start(store, "red", shares=(0.1, 0.5), rule=RULE)
    assert await operate.warnings(store, state) == (
        "red has 1 healthy replicas and needs 4 at a share of 0.5",
    )
    with pytest.raises(InputError, match="red has 1 healthy replicas and needs 4"):
        await operate.promote(store, force=True)
    done = await operate.promote(store, force=True, min_replicas=1)
    assert done.stable == "red"
    world.healthy["blue"] = 0
    await world.tick()
    with pytest.raises(InputError, match="blue has no healthy replica to return to"):
        await operate.roll_back(store, "")
    assert (await operate.roll_back(store, "", force=True)).stable == "blue"


async def test_the_loop_reads_what_an_operator_changed(world: World) -> None:
    seen: list[tuple[str | None, str]] = []

    def changed(before: RolloutState | None, after: RolloutState) -> None:
        seen.append((before and before.phase, after.phase))

    rollouts = Rollouts(
        world.opened(),
        stable="blue",
        healthy=lambda: world.healthy,
        on_change=changed,
        poll_s=0.02,
    )
    await rollouts.start()
    store = world.opened()
    await change(store, lambda s: switch(s, "green", datetime.now(UTC)))
    await until(lambda: rollouts.track_of("x") == "green")
    rollouts.record("green", "somebody", False, ttft_s=0.1, e2e_s=0.0)
    await rollouts.stop()
    assert seen == [(None, "steady"), ("steady", "switched")]
    counts = await store.counts(rollouts.state.period)
    assert counts["green"].answered == 1
    assert await store.users(rollouts.state.rollout, "green") == 1


# -- Redis goes away ------------------------------------------------------------------------------


async def until(
    true: Callable[[], bool], work: Callable[[], Awaitable[None]] | None = None
) -> None:
    for _ in range(500):
        if true():
            return
        if work is not None:
            await work()
        await asyncio.sleep(0.01)
    raise TimeoutError("it never came true")


async def test_while_redis_is_down_the_last_state_holds_and_counts_are_kept(tmp_path: Path) -> None:
    """Killed with -9; it reads its log again, and nothing is lost or counted twice."""
    server = RedisServer(tmp_path, durable=True)
    try:
        world = World(lambda: open_store(server.url))
        one, two = await world.gateway(), await world.gateway()
        await world.start(0.3)
        await world.serve(5, 20)
        before = world.state
        server.kill()
        await world.serve(5, 20)
        assert not one.store_reachable
        assert one.state == two.state == before
        assert {one.track_of(f"k{i}") for i in range(100)} == {"blue", "green"}
        world.healthy["green"] = 0
        await world.serve(1, 0)
        assert {one.track_of(f"k{i}") for i in range(100)} == {"blue"}
        world.healthy["green"] = 4
        server.start()
        await until(lambda: one.store_reachable and two.store_reachable, world.tick)
        counts = await world.opened().counts(before.period)
        assert {track: c.requests for track, c in counts.items()} == world.requests
        users = await world.opened().users(before.rollout, "green")
        assert users == pytest.approx(world.requests["green"], abs=2)
        await world.serve(60, 20)
        assert world.state.passed
        await world.close()
    finally:
        server.kill()


async def test_a_redis_that_forgot_is_told_again(server: RedisServer, on_redis: World) -> None:
    world = on_redis
    await world.gateway()
    await world.start(0.3)
    await world.serve(5, 20)
    before, served = world.state, dict(world.requests)
    await emptied(server.url)
    world.now_s += 1
    await world.tick()
    await world.tick()
    store = world.opened()
    assert await store.load() == world.state == before
    counts = await store.counts(before.period)
    assert {track: c.requests for track, c in counts.items()} == served


async def test_a_redis_from_an_old_snapshot_does_not_undo_a_rollback(
    server: RedisServer, on_redis: World
) -> None:
    world = on_redis
    await world.gateway()
    await world.start(0.3)
    old = world.state
    after = await world.change(lambda s: roll_back(s, "bad", world.now))
    store = world.opened()
    assert await store.save(old, after.version)
    await world.tick()
    assert world.state == await store.load() == after
    assert world.gateways[0].track_of("x") == "blue"


async def test_it_stops_though_its_store_has_lost_a_cancellation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(state_file=tmp_path / "state")
    rollouts = Rollouts(store, stable="blue", healthy=lambda: {"blue": 1}, poll_s=0.02)
    await rollouts.start()
    load, waiting = store.load, asyncio.Event()

    async def lose() -> RolloutState | None:
        if not waiting.is_set():
            waiting.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
        return await load()

    monkeypatch.setattr(store, "load", lose)
    await waiting.wait()
    stopping = asyncio.create_task(rollouts.stop())
    await asyncio.wait([stopping], timeout=10)
    assert stopping.done()


async def test_a_gateway_that_begins_without_redis_serves_its_stable_track() -> None:
    world = World(lambda: open_store("redis://127.0.0.1:1/0"))
    made = await world.gateway()
    assert not made.store_reachable
    assert made.track_of("x") == "blue"
    made.record("blue", "caf\udce9", False, e2e_s=0.0)
    await made.stop()


# -- how often a sound version is taken back ------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
async def test_a_sound_version_is_rarely_taken_back(server: RedisServer, strict: bool) -> None:
    """100 rollouts of two steps; strict asks for no effect beside significance, so that only the tests
    guard. At most 5 % and three standard errors."""
    effects = {"max_error_increase": 0.0, "max_slowdown": 1.0} if strict else {}
    rule = RULE.model_copy(update=effects)
    outcomes = []
    for seed in range(100):
        await emptied(server.url)
        world = World(lambda: open_store(server.url), seed=seed)
        world.failing = {"blue": 0.01, "green": 0.01}
        await world.gateway()
        await world.start(0.2, 0.5, rule=rule, auto=True)
        for _ in range(40):
            world.now_s += 9
            await world.serve(1, 100)
        outcomes.append(world.state.phase)
        await world.close()
    false = outcomes.count("rolled_back")
    print(f"{false} of 100 sound versions were taken back (strict={strict})")
    assert outcomes.count("promoted") + false == 100
    assert false / 100 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)
