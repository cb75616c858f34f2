"""The gateway's lines: ECS, the same as ecs_logging writes, and nobody's words unless asked for."""

from __future__ import annotations

import copy
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ecs_logging
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import InputError
from serving.gateway import logs
from serving.gateway.logs import configure, log_request, pseudonym, render, request_logger
from serving.gateway.traceparent import TraceParent

TRACE = TraceParent("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
PROMPT = 'my password is hunter2, "quoted"\nand ümlaut'


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers, root.level = before, level


def written(**options: Any) -> io.BytesIO:
    stream = io.BytesIO()
    configure(stream=stream, **options)
    return stream


def lines(stream: io.BytesIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def request(**changes: Any) -> None:
    given: dict[str, Any] = {
        "trace": TRACE,
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "duration_s": 0.25,
    }
    log_request(request_logger(), **(given | changes))


def failed(text: str) -> Exception:
    try:
        raise TimeoutError(text)
    except TimeoutError as error:
        return error


def test_the_line_of_a_request() -> None:
    stream = written()
    before = datetime.now(UTC)
    request(user="ann", tenant="acme", labels={"track": "canary", "k8s.pod": "vllm-1"})
    (line,) = lines(stream)
    assert stream.getvalue().startswith(b'{"@timestamp":"')
    assert list(line)[:3] == ["@timestamp", "log.level", "message"]
    at = datetime.fromisoformat(line.pop("@timestamp"))
    assert -0.01 < (at - before).total_seconds() < 5
    user, tenant = line.pop("user")["id"], line.pop("organization")["id"]
    assert len({user, tenant, "ann", "acme"}) == 4
    assert line == {
        "log.level": "info",
        "message": "request",
        "ecs.version": "1.6.0",
        "service": {"name": "gateway"},
        "event": {"dataset": "gateway.request", "duration": 250_000_000, "outcome": "success"},
        "trace": {"id": TRACE.trace_id},
        "transaction": {"id": TRACE.span_id},
        "http": {"request": {"method": "POST"}, "response": {"status_code": 200}},
        "url": {"path": "/v1/chat/completions"},
        "labels": {"track": "canary", "k8s_pod": "vllm-1"},
    }


def test_levels() -> None:
    stream = written(level="warning")
    for status in (200, 404, 503):
        request(status=status)
    request(error=failed("late"))
    request(status=429, error=failed("too many"))
    assert [(line["log.level"], line["event"]["outcome"]) for line in lines(stream)] == [
        ("warning", "failure"),
        ("error", "failure"),
        ("error", "failure"),
        ("warning", "failure"),
    ]


def test_a_refusal_is_told_without_a_stack_trace() -> None:
    stream = written()
    request(
        status=429,
        error=failed(f"too long: {PROMPT}"),
        prompt=PROMPT,
        extra={"http.request.id": "7"},
    )
    request_logger().warning("odd", exc_info=failed("x"))
    refused, odd = lines(stream)
    assert refused["error"] == {"type": "TimeoutError", "message": "too long: [...]"}
    assert refused["http"]["request"] == {"method": "POST", "id": "7"}
    assert "stack_trace" in odd["error"]


def test_an_error_tells_its_type_message_and_trace() -> None:
    stream = written()
    request(status=504, error=failed("late"))
    request(error=structlog.DropEvent("x"))
    try:
        raise ValueError("here")
    except ValueError:
        request_logger().exception("caught")
    own, foreign, caught = (line["error"] for line in lines(stream))
    assert (own["type"], own["message"]) == ("TimeoutError", "late")
    assert own["stack_trace"].startswith("Traceback (most recent call last):")
    assert "in failed" in own["stack_trace"]
    assert foreign["type"] == "structlog.exceptions.DropEvent"
    assert (caught["type"], caught["message"]) == ("ValueError", "here")


@pytest.mark.parametrize("prompts", [False, True])
def test_words_are_logged_only_where_asked_for(prompts: bool) -> None:
    stream = written(prompts=prompts)
    request(prompt=PROMPT, answer="fine")
    request(prompt=PROMPT, status=500, error=failed(f"bad input {PROMPT!r}"))
    request_logger().info("any", **{logs.PROMPT: PROMPT})
    request(prompt=["be brief", PROMPT], status=500, error=failed(f"bad input {PROMPT}"))
    found = lines(stream)
    assert len(found) == 4
    if prompts:
        assert found[0]["http"]["request"]["body"]["content"] == PROMPT
        assert found[0]["http"]["response"]["body"]["content"] == "fine"
        assert "hunter2" in found[1]["error"]["message"]
    else:
        assert b"hunter2" not in stream.getvalue()
        assert found[1]["error"]["message"] == "bad input '[...]'"
        assert "body" not in found[0]["http"]["request"]


def test_users_are_told_apart_and_not_named() -> None:
    written(key=b"secret")
    keyed = pseudonym("ann")
    assert keyed == pseudonym("ann") != pseudonym("bob")
    written(key=b"other")
    assert pseudonym("ann") != keyed
    written(key=b"secret")
    assert pseudonym("ann") == keyed
    assert len(bytes.fromhex(keyed)) == 8


def test_what_libraries_log_is_of_the_same_kind() -> None:
    stream = written()
    logging.getLogger("aiohttp").warning("slow %s", "client")
    logging.getLogger("aiohttp").debug("not this")
    configure(stream=stream)  # twice is once
    logging.getLogger("aiohttp").error("once")
    slow, once = lines(stream)
    assert (slow["message"], slow["log.level"]) == ("slow client", "warning")
    assert slow["service"]["name"] == "gateway"
    assert once["message"] == "once"


names = st.sampled_from(
    [
        *("event.duration", "event.dataset", "http.request.method", "http.response.status_code"),
        *("labels", "user.id", "url.path", "a.b.c", "a.b.d", "error.type", "plain"),
    ]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from([Path("/x"), ValueError("x")])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["x", "y", "z"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.dictionaries(names, values), st.text(), st.sampled_from(["info", "error"]))
@settings(max_examples=300, deadline=None)
def test_a_line_is_what_ecs_logging_writes(
    fields: dict[str, Any], message: str, level: str
) -> None:
    at = {"@timestamp": "2026-11-26T15:00:00.000Z"}
    theirs = ecs_logging.StructlogFormatter()(
        None, level, copy.deepcopy(fields) | at | {"event": message}
    )
    ours = render(None, level, copy.deepcopy(fields) | at | {"event": message})
    assert json.loads(ours) == json.loads(theirs)
    assert list(json.loads(ours))[:3] == list(json.loads(theirs))[:3]
    assert b"\n" not in ours


@pytest.mark.parametrize(
    "fields",
    [{"a": 1, "a.b": 2}, {"a": 2**70}, {"a": "\ud800"}, {"a": {1: 2}}, {"a": float("nan")}],
)
def test_no_field_can_lose_a_line(fields: dict[str, Any]) -> None:
    stream = written()
    request_logger().info("kept", **fields)
    (line,) = lines(stream)
    assert line["message"] == "kept"
    assert list(line)[:3] == ["@timestamp", "log.level", "message"]


def test_the_time_of_a_line_is_now_in_utc() -> None:
    assert datetime.fromisoformat(logs._now()).utcoffset() == datetime.now(UTC).utcoffset()
    seen = [logs._now() for _ in range(1000)]
    assert seen == sorted(seen)
    assert all(len(at) == 24 and at.endswith("Z") for at in seen)


def test_standard_output() -> None:
    code = (
        "from serving.gateway.logs import *; configure(); request_logger().info('hello');"
        "import sys; assert not {'torch', 'numpy', 'pandas', 'workbench'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["message"] == "hello"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"level": "loud"}, "level(='loud')"),
        ({"stream": io.StringIO()}, "StringIO"),
        ({"stream": "path"}, "str"),
        ({"key": bytes(65)}, "65 bytes"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        configure(**options)
    assert says in str(caught.value)
