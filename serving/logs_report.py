"""Which errors are in the gateway's logs, how often, since when, and where.

Reads ECS lines (serving/gateway/logs.py writes them) in one pass; what is kept grows with the number
of different errors, of which there is a limit, and not with the logs.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
from pydantic import Field

from serving.log_lines import mask
from serving.values import Value

MOST_GROUPS = 5_000
MOST_PLACES = 1_000
BUCKETS = 32
_LEVELS = frozenset({"error", "critical", "fatal"})
# One of these is in every error, whatever its case.
_SIGNS = (b"rror", b"RROR", b"ritical", b"RITICAL", b"atal", b"ATAL", b'code":5', b'code": 5')
_BARS = "▁▂▃▄▅▆▇█"
# What every formatter of ecs-logging puts first, and what no line without an error holds.
_FRONT = b'{"@timestamp":"'
_STAMP = slice(len(_FRONT), len(_FRONT) + 24)


class ErrorGroup(Value):
    """Errors of one type whose messages are the same but for numbers and ids."""

    type: str
    message: str
    """Masked."""
    example: str
    """The last one as it was."""
    trace_id: str | None
    """Of the last one that had any."""
    count: int = Field(gt=0)
    share: float | None
    """Of all requests in the logs; None where there are none."""
    first: str
    """UTC, ISO 8601."""
    last: str
    tracks: dict[str, int]
    replicas: dict[str, int]
    per_bucket: tuple[int, ...] = ()
    """Over the time of all logs, in `LogReport.bucket_s`."""

    @property
    def sparkline(self) -> str:
        """The buckets as bars; a space is none."""
        most = max(self.per_bucket, default=0)
        return "".join(
            " " if not n else _BARS[(n * len(_BARS) - 1) // most] for n in self.per_bucket
        )


class LogReport(Value):
    """The errors of some logs, the most frequent first."""

    groups: tuple[ErrorGroup, ...]
    errors: int
    requests: int
    lines: int
    foreign: int
    """Lines that are no ECS: not JSON, or without @timestamp."""
    ungrouped: int
    """Errors beyond the limit of different ones."""
    bucket_s: int


@dataclass
class _Group:
    example: str = ""
    trace_id: str | None = None
    count: int = 0
    first: str = ""
    last: str = ""
    tracks: Counter[str] = field(default_factory=Counter)
    replicas: Counter[str] = field(default_factory=Counter)
    buckets: Counter[int] = field(default_factory=Counter)


class _Clock:
    """Buckets of time that become wider as the logs become longer."""

    def __init__(self) -> None:
        self.bucket_s = 1
        self.low: int | None = None
        self.high: int | None = None

    def bucket(self, stamp: str, groups: Iterable[_Group]) -> int:
        """The bucket of a time; where there would be too many, pairs become one everywhere."""
        found = int(datetime.fromisoformat(stamp).timestamp()) // self.bucket_s
        self.low = found if self.low is None else min(self.low, found)
        self.high = found if self.high is None else max(self.high, found)
        while self.high - self.low >= BUCKETS:
            self.bucket_s, found = self.bucket_s * 2, found // 2
            self.low, self.high = self.low // 2, self.high // 2
            for group in groups:
                halved: Counter[int] = Counter()
                for bucket, count in group.buckets.items():
                    halved[bucket // 2] += count
                group.buckets = halved
        return found


def report(lines: Iterable[bytes], *, since: datetime | None = None, top: int = 10) -> LogReport:
    """Read lines once and group the errors in them.

    Args:    since: lines before it are left out; None takes all.
             top: how many groups to return.
    """
    start = "" if since is None else _stamp(since)
    groups: dict[tuple[str, str], _Group] = {}
    clock = _Clock()
    read = foreign = requests = ungrouped = 0
    for line in lines:
        read += 1
        if _is_plain(line):
            requests += b'status_code":' in line and line[_STAMP] >= start.encode()
            continue
        event = _parsed(line)
        if event is None:
            foreign += bool(line.strip())
            continue
        if event["@timestamp"] < start:
            continue
        status = _at(event, "http", "response", "status_code")
        requests += status is not None
        key = _key(event, status)
        if key is None:
            continue
        if key not in groups and len(groups) >= MOST_GROUPS:
            ungrouped += 1
            continue
        group = groups.setdefault(key, _Group())
        _add(group, event)
        bucket = clock.bucket(event["@timestamp"], groups.values())
        group.buckets[bucket] += 1
    most = heapq.nlargest(top, groups.items(), key=lambda item: (item[1].count, item[1].last))
    return LogReport(
        groups=tuple(_made(key, group, requests, clock) for key, group in most),
        errors=sum(group.count for group in groups.values()) + ungrouped,
        requests=requests,
        lines=read,
        foreign=foreign,
        ungrouped=ungrouped,
        bucket_s=clock.bucket_s,
    )


def _is_plain(line: bytes) -> bool:
    """Whether a line is ECS and holds no error: told by its bytes, since nearly all are such."""
    return (
        line.startswith(_FRONT)
        and line[_STAMP].endswith(b"Z")
        and line.endswith((b"}\n", b"}"))
        and not any(word in line for word in _SIGNS)
    )


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The event, its time in UTC to the millisecond; None where the line is none."""
    try:
        event = orjson.loads(line)
        event["@timestamp"] = _stamp(datetime.fromisoformat(event["@timestamp"]))
    except (ValueError, TypeError, KeyError):
        return None
    return event if isinstance(event, dict) else None


def _stamp(at: datetime) -> str:
    """As the lines have it, so that texts compare as times do; without a zone it is UTC."""
    known = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    return known.isoformat(timespec="milliseconds")[:-6] + "Z"


def _key(event: Mapping[str, Any], status: Any) -> tuple[str, str] | None:
    """Type and masked message of an error; None where the event is none.

    What was refused (a warning with an error in it) is the client's, and is none.
    """
    level = str(_at(event, "log", "level") or "").lower()
    failed = isinstance(status, int) and status >= 500
    if level not in _LEVELS and not failed:
        return None
    kind, message = _at(event, "error", "type"), _at(event, "error", "message")
    if kind is None:
        kind = f"HTTP {status}" if failed else _at(event, "log", "logger") or level
    told = message if message is not None else event.get("message", "")
    return str(kind), mask(str(told))


def _add(group: _Group, event: Mapping[str, Any]) -> None:
    at = event["@timestamp"]
    group.count += 1
    group.first = min(group.first or at, at)
    if at >= group.last:
        group.last = at
        group.example = str(_at(event, "error", "message") or event.get("message", ""))[:500]
        group.trace_id = _at(event, "trace", "id") or group.trace_id
    for places, name in ((group.tracks, "track"), (group.replicas, "replica")):
        place = _at(event, "labels", name)
        if place is not None and (str(place) in places or len(places) < MOST_PLACES):
            places[str(place)] += 1


def _at(event: Mapping[str, Any], *path: str) -> Any:
    """A field by its path, whether written nested or with dots; None where it is not there."""
    dotted = event.get(".".join(path))
    if dotted is not None:
        return dotted
    value: Any = event
    for part in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def _made(key: tuple[str, str], group: _Group, requests: int, clock: _Clock) -> ErrorGroup:
    low, high = clock.low or 0, clock.high or 0
    return ErrorGroup(
        type=key[0],
        message=key[1],
        example=group.example,
        trace_id=None if group.trace_id is None else str(group.trace_id),
        count=group.count,
        share=group.count / requests if requests else None,
        first=group.first,
        last=group.last,
        tracks=dict(group.tracks.most_common()),
        replicas=dict(group.replicas.most_common()),
        per_bucket=tuple(group.buckets[bucket] for bucket in range(low, high + 1)),
    )
