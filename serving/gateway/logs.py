"""What the gateway logs: one JSON line per event, in the Elastic Common Schema.

The lines are those of ecs_logging's formatter for structlog, made in one pass and by orjson: at a
thousand requests a second its json.dumps would take several percent of a core. Where orjson cannot write
a value, that formatter does.

Nobody's words are logged unless `configure(prompts=True)` says so: what stands under the fields of
bodies is dropped from every line, and cut out of errors.

Source:  ECS 8 field reference; ecs_logging 2.3 (StructlogFormatter), spec of ecs-logging: @timestamp,
         log.level and message come first, ecs.version and log.level keep their dots.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import IO, Any, NamedTuple, cast

import ecs_logging
import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger

from serving.errors import InputError
from serving.gateway.traceparent import TraceParent

PROMPT, ANSWER = "http.request.body.content", "http.response.body.content"
LEVELS = ("debug", "info", "warning", "error", "critical")
_HASH_BYTES = 8
_ecs = ecs_logging.StructlogFormatter()
ECS_VERSION = _ecs.format_to_ecs({})["ecs.version"]


class _Settings(NamedTuple):
    prompts: bool = False
    key: bytes = b""


_settings = _Settings()


def configure(
    level: str = "info",
    prompts: bool = False,
    stream: IO[Any] | None = None,
    *,
    key: bytes = b"",
    service: str = "gateway",
) -> None:
    """Set up the logging of this process: the gateway's own and that of its libraries.

    Args:    prompts: log what users wrote and what they were answered.
             stream: standard output where None; bytes, or text over bytes.
             key: of the hash of users and tenants. Without one, who can guess a name can recompute it.
    Raises:  InputError: no such level, a stream without bytes beneath, a key longer than 64 bytes.
    """
    global _settings
    if level not in LEVELS:
        raise InputError(f"level(={level!r}) is none", remedy=f"Choose of {', '.join(LEVELS)}.")
    if len(key) > hashlib.blake2b.MAX_KEY_SIZE:
        raise InputError(f"key has {len(key)} bytes", remedy="Use at most 64.")
    written = sys.stdout if stream is None else stream
    raw: Any = getattr(written, "buffer", written)
    if not hasattr(raw, "write") or isinstance(raw, (str, bytes)) or _is_text(raw):
        raise InputError(
            f"stream(={type(written).__name__}) takes no bytes", remedy="Use a file or BytesIO."
        )
    _settings = _Settings(prompts=prompts, key=key)
    pseudonym.cache_clear()
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[_with_error, *([] if prompts else [_without_words]), render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        context_class=dict,
        logger_factory=structlog.BytesLoggerFactory(raw),
        cache_logger_on_first_use=True,
    )
    _configure_libraries(number, structlog.BytesLogger(raw), service)


def request_logger(service: str = "gateway", **fields: Any) -> FilteringBoundLogger:
    """A logger whose lines carry these ECS fields; made once, not per request.

    Args:    fields: by their dotted names, **{"service.version": "1.4"}.
    """
    logger = structlog.get_logger()
    bound = logger.bind(
        **{"service.name": service, "event.dataset": f"{service}.request"}, **fields
    )
    return cast(FilteringBoundLogger, bound)


def log_request(
    logger: FilteringBoundLogger,
    *,
    trace: TraceParent,
    method: str,
    path: str,
    status: int,
    duration_s: float,
    user: str | None = None,
    tenant: str | None = None,
    labels: Mapping[str, str] | None = None,
    error: BaseException | None = None,
    prompt: str | Sequence[str] | None = None,
    answer: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the one line of a request that is over.

    A level of warning where the client was refused or left (4xx), of error where it failed here
    (5xx, or an exception), else of info.

    Args:    labels: what it ran on: track, replica, model. Dots in names become underscores.
             prompt, answer: written only where `configure(prompts=True)`, else cut out of the error;
                 a prompt of several messages is given as such, so that each can be.
             extra: further ECS fields by their dotted names, as {"http.request.id": "17"}.
    """
    fields: dict[str, Any] = {
        "trace.id": trace.trace_id,
        "transaction.id": trace.span_id,
        "http.request.method": method,
        "url.path": path,
        "http.response.status_code": status,
        "event.duration": round(duration_s * 1e9),
        "event.outcome": "failure" if status >= 400 or error is not None else "success",
    }
    if user is not None:
        fields["user.id"] = pseudonym(user)
    if tenant is not None:
        fields["organization.id"] = pseudonym(tenant)
    if labels:
        fields["labels"] = {name.replace(".", "_"): value for name, value in labels.items()}
    if _settings.prompts and prompt is not None:
        fields[PROMPT] = prompt if isinstance(prompt, str) else "\n".join(prompt)
    if _settings.prompts and answer is not None:
        fields[ANSWER] = answer
    if extra:
        fields |= extra
    refused = 400 <= status < 500
    if error is not None:
        # A refusal is no defect, and whoever floods the gateway would be paid in stack traces.
        words = [prompt] if isinstance(prompt, str) else list(prompt or ())
        fields |= _told_of(error, [*words, answer or ""], stack=not refused)
    if refused:
        logger.warning("request", **fields)
    elif error is not None or status >= 500:
        logger.error("request", **fields)
    else:
        logger.info("request", **fields)


@lru_cache(maxsize=8192)
def pseudonym(name: str) -> str:
    """16 hex digits that stand for a user or tenant: the same for the same name and key."""
    hashed = hashlib.blake2b(name.encode(), digest_size=_HASH_BYTES, key=_settings.key)
    return hashed.hexdigest()


def render(logger: Any, method: str, event: EventDict) -> bytes:
    """The line of an event, as structlog's last processor."""
    line: dict[str, Any] = {
        "@timestamp": event.pop("@timestamp", None) or _now(),
        "log.level": method,
        "message": str(event.pop("event")),
        "ecs.version": ECS_VERSION,
    }
    event.pop("message", None)
    try:
        line |= _nested(event)
        return orjson.dumps(line, default=_told)
    except (TypeError, AttributeError, RecursionError) as error:
        return _anyhow(method, line, event, error)


def _anyhow(method: str, line: dict[str, Any], event: EventDict, error: Exception) -> bytes:
    """The line of an event that orjson cannot write: an answer is never lost over a line of log.

    Integers of more than 64 bits, lone surrogates and keys that are no strings are written by
    ecs_logging; what contradicts itself (a value that is an object too) is written as text.
    """
    told = repr(event)
    known = {"event": line["message"], "@timestamp": line["@timestamp"]}
    try:
        return _ecs(None, method, {**event, **known}).encode()
    except Exception:
        front = {name: line[name] for name in ("@timestamp", "log.level", "message", "ecs.version")}
        problem = {"log_problem": f"{type(error).__name__}: {error}", "fields": told}
        return json.dumps({**front, "labels": problem}).encode()


def _now() -> str:
    now_s = time.time()
    whole_s = int(now_s)
    return f"{_second(whole_s)}{int((now_s - whole_s) * 1000):03d}Z"


@lru_cache(maxsize=4)
def _second(since_epoch: int) -> str:
    """To the second; the milliseconds are put behind it."""
    return datetime.fromtimestamp(since_epoch, UTC).strftime("%Y-%m-%dT%H:%M:%S.")


def _nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": 1, "a.c": 2} as {"a": {"b": 1, "c": 2}}."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        kind = value.__class__
        if kind is dict:
            value = _nested(value)
        elif kind is list:
            value = [_nested(item) if isinstance(item, dict) else item for item in value]
        outer, last = _parts(name)
        place = found
        for part in outer:
            inner = place.get(part)
            if inner is None:
                inner = place[part] = {}
            place = inner
        if kind is dict and last in place:
            place[last] |= value
        else:
            place[last] = value
    return found


@lru_cache(maxsize=1024)
def _parts(name: str) -> tuple[tuple[str, ...], str]:
    *outer, last = name.split(".")
    return tuple(outer), last


def _told(value: Any) -> Any:
    """What JSON does not know, as structlog's and ecs_logging's own renderers tell it."""
    try:
        return value.__structlog__()
    except AttributeError:
        return repr(value)


def _without_words(logger: Any, method: str, event: EventDict) -> EventDict:
    event.pop(PROMPT, None)
    event.pop(ANSWER, None)
    return event


def _with_error(logger: Any, method: str, event: EventDict) -> EventDict:
    """What was caught (`exc_info`, as logging has it), in ECS."""
    if "exc_info" not in event or not (given := event.pop("exc_info")):
        return event
    error = given[1] if isinstance(given, tuple) else given
    if not isinstance(error, BaseException):
        error = sys.exception()
    if error is not None:
        event.update(
            _told_of(error, [str(event[name]) for name in (PROMPT, ANSWER) if name in event])
        )
    return event


def _told_of(error: BaseException, words: list[str], *, stack: bool = True) -> dict[str, str]:
    """error.type, error.message and error.stack_trace, without words of users."""
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    told = {"error.type": module + kind.__qualname__, "error.message": str(error)}
    if stack:
        told["error.stack_trace"] = "".join(traceback.format_exception(error))
    if words and not _settings.prompts:
        told = {name: _cut(text, words) for name, text in told.items()}
    return told


def _cut(text: str, words: list[str]) -> str:
    """The text without what a user wrote, as it is or as Python and JSON quote it."""
    for word in words:
        quoted = (word, repr(word)[1:-1], orjson.dumps(word, default=str).decode()[1:-1])
        for form in quoted:
            if form:
                text = text.replace(form, "[...]")
    return text


class _Lines(logging.Handler):
    """What libraries log, as lines of the same kind on the same stream."""

    def __init__(self, writer: structlog.BytesLogger, service: str) -> None:
        super().__init__()
        self._writer = writer
        self.setFormatter(ecs_logging.StdlibFormatter(extra={"service.name": service}))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.msg(self.format(record).encode(errors="backslashreplace"))
        except Exception:
            self.handleError(record)


def _configure_libraries(level: int, writer: structlog.BytesLogger, service: str) -> None:
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Lines)]:
        root.removeHandler(handler)
    root.addHandler(_Lines(writer, service))
    root.setLevel(level)


def _is_text(stream: Any) -> bool:
    try:
        stream.write(b"")
    except TypeError:
        return True
    return False
