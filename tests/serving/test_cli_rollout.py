"""`serving rollout`: on both stores, as an operator types it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serving.cli.rollout import app
from serving.gateway.rollout import Rollouts, open_store
from tests.serving.redis_server import RedisServer

COMMANDS = ["status", "start", "promote", "rollback", "switch"]
HEALTHY = {"blue": 2, "green": 2, "red": 0}


def typed(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)"""
    clean = {"GATEWAY_REDIS_URL": None, "GATEWAY_STATE_FILE": None, "COLUMNS": "200"}
    done = CliRunner().invoke(app, list(arguments), env={**clean, **(env or {})})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    started = RedisServer(tmp_path_factory.mktemp("redis"))
    yield started
    started.kill()


@pytest.fixture(params=["redis", "file"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """Options that name a store in which a gateway has spoken."""
    if request.param == "file":
        path = tmp_path / "rollout.json"
        gateway(None, path)
        return ["--state", str(path)]
    url = request.getfixturevalue("server").url

    async def empty() -> None:
        from redis.asyncio import Redis

        client = Redis.from_url(url)
        await client.flushall()
        await client.aclose()

    asyncio.run(empty())
    gateway(url, None)
    return ["--redis", url]


def gateway(url: str | None, path: Path | None, **requests: int) -> None:
    """A gateway begins, counts some requests of each track, and ends."""

    async def live() -> None:
        made = Rollouts(open_store(url, path), stable="blue", healthy=lambda: HEALTHY)
        await made.tick()
        for track, n in requests.items():
            for i in range(n):
                made.record(track, f"user-{i}", i % 10 == 0, ttft_s=0.05, tpot_s=0.02, e2e_s=0.0)
        await made.stop()

    asyncio.run(live())


def again(where: list[str], **requests: int) -> None:
    option, place = where
    gateway(*((place, None) if option == "--redis" else (None, Path(place))), **requests)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str) -> None:
    code, out, _ = typed(command, "--help")
    assert code == 0
    assert f"Examples: serving rollout {command}" in " ".join(out.split())


def test_a_rollout_from_its_start_to_its_end(where: list[str]) -> None:
    code, out, _ = typed("status", *where)
    assert code == 0
    assert "steady: blue serves all" in out
    code, out, _ = typed("start", "green", "--share", "0.1", "--steps", "", *where)
    assert (code, out) == (
        0,
        "canary: green takes 0.1 of the conversations beside blue (step 1 of 1)\n",
    )
    again(where, blue=40, green=20)
    code, out, _ = typed("status", *where)
    assert "verdict: not looked at yet; next look in " in out
    row = next(line.split() for line in out.splitlines() if line.startswith("green"))
    assert row[:7] == ["green", "candidate", "0.1", "2", "20", "2", "10.00%"]
    assert row[-2:] == ["20", "280"]
    code, _, err = typed("promote", *where)
    assert code == 2
    assert (
        "green has not passed yet (step 1 of 1, not looked at). Wait for it, or use --force" in err
    )
    code, out, _ = typed("promote", "--force", *where)
    assert (code, out) == (0, "promoted: green serves all; rollback returns to blue\n")
    code, out, _ = typed("rollback", "--reason", "wrong prices", *where)
    assert code == 0
    assert out == "rolled_back: blue serves all again, green was taken back\nwrong prices\n"
    code, out, _ = typed("switch", "green", *where)
    assert (code, out) == (0, "switched: green serves all; rollback returns to blue\n")
    code, out, _ = typed("rollback", *where)
    assert out.endswith("by the operator\n")


def test_status_as_json_is_whole(where: list[str]) -> None:
    assert typed("start", "green", "--share", "0.2", *where)[0] == 0
    again(where, green=20)
    code, out, _ = typed("status", "--json", *where)
    assert code == 0
    found = json.loads(out)
    assert found["state"]["phase"] == "canary"
    assert found["state"]["shares"] == [0.2, 0.5]
    green = next(track for track in found["tracks"] if track["track"] == "green")
    assert (green["requests"], green["failed"], green["users_hit"]) == (20, 2, 20)
    assert green["ttft_mean_s"] == pytest.approx(0.05)
    assert 0.04 < green["ttft_p99_s"] <= 0.06


def test_the_store_is_read_from_the_environment(where: list[str]) -> None:
    name = "GATEWAY_REDIS_URL" if where[0] == "--redis" else "GATEWAY_STATE_FILE"
    code, out, _ = typed("status", env={name: where[1]})
    assert code == 0
    assert "steady" in out


def test_what_is_typed_wins_over_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    gateway(None, path)
    code, out, _ = typed(
        "status", "--state", str(path), env={"GATEWAY_REDIS_URL": "redis://127.0.0.1:1"}
    )
    assert code == 0
    assert "steady" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["start", "blue"], ["track(='blue')", "takes all traffic already"]),
        (["start", "gren"], ["track(='gren')", "blue, green, red"]),
        (["start", "red"], ["red has 0 healthy replicas", "Wait until one is ready"]),
        (["start", "green", "--steps", "a"], ["--steps(='a')", "0.1,0.5"]),
        (["start", "green", "--steps", "0.5,0.1"], ["[0.01, 0.5, 0.1]", "must ascend"]),
        (["start", "green", "--share", "2"], ["share(=2.0)", "less than"]),
        (["start", "green", "--look-s", "600"], ["look_s(=600.0)", "window_s(=300.0)"]),
        (["start", "green", "--latency", "itl"], ["latency(='itl')", "ttft"]),
        (["start", "green", "--min-requests", "0"], ["min_requests(=0)"]),
        (["switch", "red"], ["red has 0 healthy replicas and needs 2", "--min-replicas"]),
        (["switch", "green", "--auto-promote"], ["--auto-promote", "--watch"]),
        (["promote"], ["phase(=steady)", "nothing to promote"]),
        (["rollback"], ["phase(=steady)", "nothing to roll back"]),
        (["status", "--json", "--watch"], ["--watch", "--json"]),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], says: list[str]) -> None:
    path = tmp_path / "r.json"
    gateway(None, path)
    before = path.read_text()
    code, out, err = typed(*arguments, "--state", str(path))
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    for words in says:
        assert words in err
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no store is given"),
        (["--state", "/no/such/folder/r.json"], "no gateway has written a state"),
        (["--redis", "redis://127.0.0.1:1"], "Redis at 127.0.0.1:1 does not answer"),
        (["--redis", "127.0.0.1"], "the URL of Redis cannot be read"),
        (["--redis", "redis://127.0.0.1:1", "--state", "r.json"], "are two stores"),
    ],
)
def test_a_store_that_cannot_be_is_one_line(arguments: list[str], says: str) -> None:
    for command in (["status"], ["rollback"]):
        code, _, err = typed(*command, *arguments)
        assert (code, len(err.splitlines())) == (2, 1), err
        assert says in err


def test_too_few_replicas_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEALTHY, "blue", 6)
    path = tmp_path / "r.json"
    gateway(None, path)
    code, _, err = typed("start", "green", "--state", str(path))
    assert code == 0
    assert err == (
        "warning: green has 2 healthy replicas and needs 6 at a share of 0.5, or it looks slow"
        " for its load\n"
    )


def test_watch_shows_it_again_until_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.json"
    gateway(None, path)
    waits: list[float] = []

    def wait(s: float) -> None:
        waits.append(s)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", wait)
    code, out, _ = typed("status", "--watch", "--state", str(path))
    assert code == 0
    assert waits == [2, 2, 2]
    assert "steady: blue serves all" in out
