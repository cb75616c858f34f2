"""The shared connection, with a real Redis that is late."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving.gateway.pipe import Pipe
from tests.serving.redis_server import redis_server


def test_an_answer_that_is_late_goes_to_nobody_and_the_next_to_whom_it_belongs(
    tmp_path: Path,
) -> None:
    async def ask(url: str) -> None:
        pipe, patient = Pipe(url, timeout_s=0.2), Pipe(url, timeout_s=30.0)
        try:
            assert await pipe.ask(("SET", "name", "first")) == [b"OK"]
            await patient.ask(("CLIENT", "PAUSE", "1000", "ALL"))
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    await pipe.ask(("GET", "name"))
            assert await patient.ask(("SET", "name", "second")) == [b"OK"]
            # On the connection on which two replies came late.
            assert await pipe.ask(("GET", "name"), ("GET", "none")) == [b"second", None]
        finally:
            await pipe.close()
            await patient.close()

    with redis_server(tmp_path) as redis:
        asyncio.run(ask(redis.url))


def test_of_many_only_those_who_wait_too_long_are_told_so(tmp_path: Path) -> None:
    async def ask(url: str) -> None:
        pipe = Pipe(url, timeout_s=0.5)
        try:
            await pipe.ask(("PING",))
            await pipe.ask(("CLIENT", "PAUSE", "700", "ALL"))
            early = asyncio.ensure_future(pipe.ask(("ECHO", "early")))
            await asyncio.sleep(0.4)
            late = asyncio.ensure_future(pipe.ask(("ECHO", "late")))
            with pytest.raises(TimeoutError):
                await early
            assert await late == [b"late"]
        finally:
            await pipe.close()

    with redis_server(tmp_path) as redis:
        asyncio.run(ask(redis.url))
