"""A new version that fails is taken back by the gateways themselves, and few users have seen it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from tests.serving.gateway.processes import GatewayProcess
from tests.serving.gateway.upstream import Upstream, upstream
from tests.serving.redis_server import redis_server

SHARE = 0.05


def rollout(redis_url: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "serving.cli", "rollout", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "GATEWAY_REDIS_URL": redis_url},
        check=True,
    )
    return done.stdout


async def state(redis_url: str) -> dict[str, Any]:
    text = await asyncio.to_thread(rollout, redis_url, "status", "--json")
    found: dict[str, Any] = orjson.loads(text)
    return found


class Users:
    """Conversations that go on, each with whichever gateway; and who was failed."""

    def __init__(self, gateways: list[GatewayProcess]) -> None:
        self.gateways = gateways
        self.asked = 0
        self.failed: set[str] = set()
        self.tracks: dict[str, set[str]] = {}
        self.over = False

    async def ask(self, session: aiohttp.ClientSession, name: str) -> bool:
        gateway = self.gateways[self.asked % len(self.gateways)]
        self.asked += 1
        body = {"messages": [{"role": "user", "content": "Hello"}], "conversation": name}
        async with session.post(gateway.url + "/v1/chat/completions", json=body) as answer:
            await answer.read()
            if answer.status == 200:
                self.tracks.setdefault(name, set()).add(answer.headers["X-Track"])
            else:
                self.failed.add(name)
            return answer.status == 200

    async def many(self, session: aiohttp.ClientSession) -> None:
        while not self.over:
            await self.ask(session, f"user-{self.asked % 2000}")


async def started(
    tmp_path: Path, redis_url: str, blue: Upstream, green: Upstream
) -> list[GatewayProcess]:
    """Two gateways that know of all replicas that are well."""
    well = float(green.status == 200)
    options = {
        "TRACKS": json.dumps({"blue": [blue.url], "green": [green.url]}),
        "REDIS_URL": redis_url,
        "HEALTH__BREAKER_FAILURES": "1000",
    }
    made = [GatewayProcess(tmp_path / f"log{n}", **options) for n in range(2)]
    for one in made:
        await asyncio.to_thread(one.await_ready)
        while await asyncio.to_thread(one.metric, 'gateway_replicas_up{track="green"}') != well:
            await asyncio.sleep(0.05)
    await asyncio.sleep(2.0)  # until they have told one another
    return made


async def test_a_canary_that_fails_is_rolled_back_by_itself(tmp_path: Path) -> None:
    async with upstream() as blue, upstream() as green, aiohttp.ClientSession() as session:
        with redis_server(tmp_path) as redis:
            gateways = await started(tmp_path, redis.url, blue, green)
            users = Users(gateways)
            try:
                start = ("start", "green", "--share", str(SHARE), "--look-s", "1")
                start += ("--window-s", "60", "--latency", "e2e")
                await asyncio.to_thread(rollout, redis.url, *start)
                asking = [asyncio.create_task(users.many(session)) for _ in range(4)]
                async with asyncio.timeout(30):
                    while not green.chats:
                        await asyncio.sleep(0.05)
                green.status = 500
                began_s = time.monotonic()
                async with asyncio.timeout(60):
                    while (found := await state(redis.url))["state"]["phase"] != "rolled_back":
                        await asyncio.sleep(0.2)
                took_s = time.monotonic() - began_s
                await asyncio.sleep(1.5)  # until the other gateway has heard of it
                users.failed, failed = set(), users.failed
                before = len(green.chats)
                await asyncio.sleep(1.0)
                users.over = True
                await asyncio.gather(*asking)
                assert users.failed == set()
                assert len(green.chats) == before
                share = len(failed) / 2000
                print(f"rolled back after {took_s:.1f} s; {share:.2%} of the users were failed")
                assert 0 < share < 3 * SHARE
                assert "fail" in found["state"]["reason"]
                # It is remembered when all gateways start again.
                for one in gateways:
                    one.stop()
                gateways[:] = await started(tmp_path, redis.url, blue, green)
                assert (await state(redis.url))["state"]["phase"] == "rolled_back"
                before = len(green.chats)
                users = Users(gateways)
                for number in range(100):
                    assert await users.ask(session, f"user-{number}")
                assert len(green.chats) == before
            finally:
                for one in gateways:
                    one.stop()


async def test_a_switch_takes_everybody_at_once_and_back(tmp_path: Path) -> None:
    async with upstream() as blue, upstream() as green, aiohttp.ClientSession() as session:
        with redis_server(tmp_path) as redis:
            gateways = await started(tmp_path, redis.url, blue, green)
            try:
                for command, track in (
                    (("switch", "green"), "green"),
                    (("rollback",), "blue"),
                    (("switch", "green"), "green"),
                    (("promote",), "green"),
                ):
                    await asyncio.to_thread(rollout, redis.url, *command)
                    await asyncio.sleep(2.5)
                    users = Users(gateways)
                    for number in range(40):
                        assert await users.ask(session, f"user-{number}")
                    assert set().union(*users.tracks.values()) == {track}
            finally:
                for one in gateways:
                    one.stop()


async def test_users_stay_on_their_track(tmp_path: Path) -> None:
    async with upstream() as blue, upstream() as green, aiohttp.ClientSession() as session:
        with redis_server(tmp_path) as redis:
            gateways = await started(tmp_path, redis.url, blue, green)
            try:
                await asyncio.to_thread(
                    rollout, redis.url, "start", "green", "--share", "0.3", "--window-s", "600"
                )
                await asyncio.sleep(2.5)
                users = Users(gateways)
                for _ in range(3):
                    for number in range(200):
                        assert await users.ask(session, f"user-{number}")
                assert all(len(tracks) == 1 for tracks in users.tracks.values())
                canary = sum(tracks == {"green"} for tracks in users.tracks.values())
                assert 0.15 < canary / 200 < 0.45
            finally:
                for one in gateways:
                    one.stop()
