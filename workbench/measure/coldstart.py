"""The parts of a vLLM start: what a new replica waits for, from vLLM's own log lines.

At INFO vLLM says how long each part took, and prints every engine step as well, at a cost that would
be measured. `logging_config` keeps the first with time stamps and silences the second.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from serving.values import Value

CONFIG_VARIABLE = "VLLM_LOGGING_CONFIG_PATH"

_DATE_FORMAT = "%Y-%m-%dT%H:%M:%S"
_STATS_LOGGER = "vllm.v1.metrics.loggers"
"""Prints every step (with --enable-logging-iteration-details) and a summary every ten seconds."""

# Level and time stand in parentheses because that is what failure.py takes off a line's front.
_STAMPED = re.compile(
    r"\((?P<at>\d{4}-\d\d-\d\dT[\d:]+\.\d{3}[+-]\d{4}) [A-Z]+ pid=(?P<pid>\d+)\) \[[^\]]*\] "
)
_SECONDS = r"(\d+(?:\.\d+)?) ?s(?:ec|\b)"
_LOADING = "Starting to load model"
_LOADED = re.compile(rf"Model loading took .* {_SECONDS}")
# "takes" up to 0.17; "and initial profiling/warmup run together" where the two cannot be told apart.
_COMPILE = re.compile(rf"torch\.compile (?:and .* together )?(?:takes|took) {_SECONDS} in total")
# vLLM for CPUs names no duration; between these it compiles, and runs once.
_CPU_COMPILE = ("Warming up model for the compilation", "Warming up done")
_CAPTURE = re.compile(rf"Graph capturing finished in {_SECONDS}")
_ENGINE = re.compile(rf"init engine \(profile, create kv cache, warmup model\) took {_SECONDS}")
_ENGINE_COMPILE = re.compile(rf"init engine .*\(compilation: {_SECONDS}")
_READY = "Application startup complete"


class ColdStartParts(Value):
    """Seconds of each part of a start, in their order; None where vLLM did not say.

    What no line accounts for is in `server_s`, so that the known parts always sum to the whole.
    """

    process_s: float | None = Field(None, ge=0)
    """Start of the process to vLLM's first line: interpreter and imports."""
    engine_process_s: float | None = Field(None, ge=0)
    """First line to the start of loading: configuration, the engine's own processes with their
    imports, the device."""
    load_s: float | None = Field(None, ge=0)
    """The model made, its weights read, moved and brought into the form of the kernels."""
    compile_s: float | None = Field(None, ge=0)
    """torch.compile; None also where nothing is compiled."""
    capture_s: float | None = Field(None, ge=0)
    """CUDA graphs, which vLLM gives in whole seconds; None also where none is captured."""
    warmup_s: float | None = Field(None, ge=0)
    """The rest of the engine's initialisation: profiling, KV cache, warm-up of kernels."""
    server_s: float | None = Field(None, ge=0)
    """Until HTTP answers: all that is not in the parts above."""
    first_token_s: float | None = Field(None, ge=0)
    """Ready to first answer."""

    @property
    def total_s(self) -> float:
        """Start of the process to the first answer."""
        return float(sum(s for s in self.model_dump().values() if s is not None))


class _Line(NamedTuple):
    at: float | None
    pid: str
    text: str


def parse_start_log(
    text: str, spawned_at: float, ready_at: float | None, answered_at: float
) -> ColdStartParts:
    """The parts of a start from a log that was written with `logging_config`.

    A line without time stamp still gives its duration. With several workers the slowest counts.

    Args:    spawned_at, ready_at, answered_at: seconds since the epoch (`time.time()`); a ready_at of
                 None is taken from the web server's "Application startup complete", and is
                 answered_at where there is no such line.
    Source:  vllm 0.10 to 0.32: v1/engine/core.py, v1/worker/gpu_model_runner.py,
             v1/worker/cpu_model_runner.py, compilation/monitor.py
    """
    lines = [_line(line) for line in text.splitlines()]
    stamps = [line.at for line in lines if line.at is not None and line.at >= spawned_at]
    if ready_at is None:
        ready_at = min(_said_at(lines, _READY) or answered_at, answered_at)

    first_at = min(stamps, default=None)
    engine_s, engine_at = _slowest(lines, _ENGINE), _begin(lines, _ENGINE)
    loading_at = _said_at(lines, _LOADING) or _begin(lines, _LOADED)
    load_s = _between(loading_at, engine_at)
    compile_s = (
        _slowest(lines, _ENGINE_COMPILE)
        or _slowest(lines, _COMPILE)
        or _between(*(_said_at(lines, said) for said in _CPU_COMPILE))
    )
    capture_s = _slowest(lines, _CAPTURE)
    parts = {
        "process_s": _between(spawned_at, first_at),
        "engine_process_s": _between(first_at, loading_at),
        "load_s": _slowest(lines, _LOADED) if load_s is None else load_s,
        "compile_s": compile_s,
        "capture_s": capture_s,
        "warmup_s": None
        if engine_s is None
        else max(0.0, engine_s - (compile_s or 0.0) - (capture_s or 0.0)),
    }
    known_s = sum(seconds for seconds in parts.values() if seconds is not None)
    return ColdStartParts(
        **parts,
        server_s=max(0.0, ready_at - spawned_at - known_s),
        first_token_s=max(0.0, answered_at - ready_at),
    )


def logging_config() -> dict[str, Any]:
    """Logging for vLLM and its web server: INFO with time stamps, without a line per step.

    For logging.config.dictConfig. With its logger above INFO, vLLM does not even make the object that
    would print the steps.
    """
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "stamped": {"format": _line_format(), "datefmt": _DATE_FORMAT},
        },
        "handlers": {
            "stamped": {
                "class": "logging.StreamHandler",
                "formatter": "stamped",
                "stream": "ext://sys.stdout",
            }
        },
        "loggers": {
            "vllm": {"handlers": ["stamped"], "level": "INFO", "propagate": False},
            _STATS_LOGGER: {"level": "WARNING"},
            "uvicorn": {"handlers": ["stamped"], "level": "INFO", "propagate": False},
            "uvicorn.access": {"level": "WARNING"},
        },
    }


def write_logging_config(path: Path) -> Path:
    """Write `logging_config` as the JSON file that VLLM_LOGGING_CONFIG_PATH names."""
    path.write_text(json.dumps(logging_config(), indent=2) + "\n")
    return path


@contextmanager
def captured_start_log() -> Iterator[list[str]]:
    """The lines that vLLM in this process logs meanwhile, for `parse_start_log`; none is printed.

    Only for an engine without processes of its own; imports vLLM. Levels are as before afterwards.
    """
    _settle_logging()
    lines: list[str] = []
    handler = _Collector(lines)
    vllm, stats = logging.getLogger("vllm"), logging.getLogger(_STATS_LOGGER)
    levels = (vllm.level, stats.level)
    vllm.addHandler(handler)
    vllm.setLevel(logging.INFO)
    stats.setLevel(logging.WARNING)
    try:
        yield lines
    finally:
        vllm.removeHandler(handler)
        vllm.setLevel(levels[0])
        stats.setLevel(levels[1])


def _settle_logging() -> None:
    """Let vLLM do now what would take our handler away, or lines from it, as an engine starts."""
    import vllm.logger

    # From 0.32 an engine configures logging again unless its configuration is in force already.
    with suppress(ImportError, AttributeError):
        from vllm.config.logging import LoggingConfig

        vllm.logger.configure_logging_if_needed(LoggingConfig())
    # What an engine before this one said in the same words would not be said again.
    with suppress(AttributeError):
        vllm.logger._print_info_once.cache_clear()


class _Collector(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.INFO)
        self._lines = lines
        self.setFormatter(logging.Formatter(_line_format(), _DATE_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))


def _line_format() -> str:
    return (
        f"(%(asctime)s.%(msecs)03d{time.strftime('%z')} %(levelname)s pid=%(process)d)"
        " [%(filename)s:%(lineno)d] %(message)s"
    )


def _line(text: str) -> _Line:
    stamp = _STAMPED.search(text)
    if stamp is None:
        return _Line(None, "", text)
    return _Line(datetime.fromisoformat(stamp["at"]).timestamp(), stamp["pid"], text[stamp.end() :])


def _slowest(lines: Sequence[_Line], pattern: re.Pattern[str]) -> float | None:
    """Seconds that the pattern finds, summed within a process; the slowest process; None: nowhere."""
    by_process: dict[str, float] = defaultdict(float)
    for line in lines:
        if found := pattern.search(line.text):
            by_process[line.pid] += float(found[1])
    return max(by_process.values(), default=None)


def _said_at(lines: Sequence[_Line], said: str) -> float | None:
    """When a line first said so; None: never, or without time stamp."""
    stamps = [line.at for line in lines if said in line.text and line.at is not None]
    return min(stamps, default=None)


def _begin(lines: Sequence[_Line], pattern: re.Pattern[str]) -> float | None:
    """When began what the pattern says is over: the first time; None: nowhere, or no time stamp."""
    begins_at = [
        line.at - float(found[1])
        for line in lines
        if line.at is not None and (found := pattern.search(line.text))
    ]
    return min(begins_at, default=None)


def _between(begin_at: float | None, end_at: float | None) -> float | None:
    return None if begin_at is None or end_at is None else max(0.0, end_at - begin_at)
