"""The store in a JSON file with a folder beside it: gateways of one machine, and no Redis."""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from serving.errors import InputError
from serving.gateway.rollout.counts import Counts
from serving.gateway.rollout.state import RolloutState
from serving.gateway.rollout.store import (
    COUNTS,
    FORGOTTEN_S,
    HEALTH_S,
    KEPT,
    Report,
    StoreError,
    least_healthy,
)

T = TypeVar("T")
_USER_BYTES = 8


class FileStore:
    """STATE.json is the state, for people to read too; STATE.json.d holds the rest.

    lock                       held while the state is compared and replaced
    health/GATEWAY             [time, {track: healthy replicas}]
    counts/PERIOD/GATEWAY      {track: counts}, replaced whole
    users/ROLLOUT/TRACK/GATEWAY    eight bytes of hash for each user, appended
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = path.with_name(path.name + ".d")
        self._written: dict[Path, set[bytes]] = {}

    @property
    def name(self) -> str:
        return str(self._path)

    async def load(self) -> RolloutState | None:
        return await self._apart(self._load)

    async def save(self, state: RolloutState, expected: int | None) -> bool:
        return await self._apart(lambda: self._save(state, expected))

    async def report(self, report: Report) -> None:
        await self._apart(lambda: self._report(report))

    async def counts(self, period: int) -> dict[str, Counts]:
        return await self._apart(lambda: self._counts(period))

    async def users(self, rollout: int, track: str) -> int:
        return await self._apart(lambda: self._users(rollout, track))

    async def healthy(self, now_s: float) -> dict[str, int] | None:
        def read() -> dict[str, int] | None:
            spoke = {path: json.loads(path.read_text()) for path in self._files("health")}
            for path, (at_s, _) in spoke.items():
                if now_s - at_s > FORGOTTEN_S:
                    path.unlink(missing_ok=True)
            return least_healthy([h for at_s, h in spoke.values() if now_s - at_s <= HEALTH_S])

        return await self._apart(read)

    async def close(self) -> None:
        pass

    # -- what is done in a thread, since a disk may be slow ---------------------------------------

    async def _apart(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise StoreError(
                f"cannot use {error.filename or self._path} ({error.strerror})",
                remedy="Check --state: its folder must exist and be writable.",
            ) from error
        except (InputError, ValidationError, ValueError) as error:
            raise StoreError(
                f"{self._path} or what lies beside it cannot be read ({error})".replace("\n", " "),
                remedy="Use another file, or delete it to begin anew.",
            ) from error

    def _load(self) -> RolloutState | None:
        return RolloutState.read(self._path) if self._path.exists() else None

    def _save(self, state: RolloutState, expected: int | None) -> bool:
        with self._locked():
            there = self._load()
            if (there.version if there is not None else None) != expected:
                return False
            state.write(self._path)
        self._forget("counts", state.period)
        self._forget("users", state.rollout)
        return True

    def _report(self, report: Report) -> None:
        said = json.dumps([report.at_s, dict(report.healthy)])
        _replace(self._folder / "health" / report.gateway, said.encode())
        for period, totals in report.counts.items():
            _replace(self._folder / "counts" / str(period) / report.gateway, totals)
        for rollout, by_track in report.users.items():
            for track, users in by_track.items():
                self._append(self._folder / "users" / str(rollout) / track / report.gateway, users)

    def _append(self, path: Path, users: Set[bytes]) -> None:
        written = self._written.setdefault(path, set())
        marks = {blake2b(user, digest_size=_USER_BYTES).digest() for user in users} - written
        if marks:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(b"".join(marks))
            written |= marks

    def _counts(self, period: int) -> dict[str, Counts]:
        parts = self._files(f"counts/{period}")
        by_gateway = [COUNTS.validate_json(path.read_bytes()) for path in parts]
        tracks = sorted({track for found in by_gateway for track in found})
        return {t: Counts.sum_of(found[t] for found in by_gateway if t in found) for t in tracks}

    def _users(self, rollout: int, track: str) -> int:
        marks: set[bytes] = set()
        for path in self._files(f"users/{rollout}/{track}"):
            data = path.read_bytes()
            # What a crash has torn is left out.
            whole = len(data) - len(data) % _USER_BYTES
            marks.update(data[i : i + _USER_BYTES] for i in range(0, whole, _USER_BYTES))
        return len(marks)

    def _files(self, folder: str) -> list[Path]:
        found = (self._folder / folder).glob("*")
        return sorted(path for path in found if path.suffix != ".partial")

    def _forget(self, folder: str, current: int) -> None:
        for path in (self._folder / folder).glob("*"):
            if int(path.name) < current - KEPT:
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(exist_ok=True)
        with (self._folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)
