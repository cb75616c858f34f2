"""The parts of a start, from lines that vLLM really wrote (CPU) and from the formats in its source."""

from __future__ import annotations

import logging
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from types import ModuleType

import pytest

from workbench.measure.coldstart import (
    ColdStartParts,
    captured_start_log,
    logging_config,
    parse_start_log,
    write_logging_config,
)
from workbench.measure.failure import telling_line


def at(clock: str) -> float:
    return datetime.fromisoformat(f"2026-11-23T{clock}+0000").timestamp()


# vLLM 0.32 on a CPU, a server without compilation: two processes.
CPU_SERVER = """\
Triton is installed, but doesn't include CPU backend. Disabling Triton.
(2026-11-23T19:25:54.408+0000 INFO pid=32029) [api_utils.py:347] vLLM server version 0.32.0, serving model demo
(2026-11-23T19:25:54.422+0000 INFO pid=32029) [model.py:733] Resolved architecture: LlamaForCausalLM
(2026-11-23T19:26:09.272+0000 INFO pid=32068) [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='demo'
(2026-11-23T19:26:10.127+0000 INFO pid=32068) [cpu_model_runner.py:68] Starting to load model demo...
(2026-11-23T19:26:10.753+0000 INFO pid=32068) [base_loader.py:82] Initializing model took 0.625557 seconds
Loading safetensors checkpoint shards: 100% Completed | 1/1 [00:00<00:00, 23.91it/s]
(2026-11-23T19:26:10.799+0000 INFO pid=32068) [default_loader.py:501] Loading weights took 0.04 seconds
(2026-11-23T19:26:11.748+0000 INFO pid=32068) [kv_cache_utils.py:2327] CPU KV cache size: 32,768 tokens, Maximum concurrency for 256 tokens per request: 128.00x
(2026-11-23T19:26:11.924+0000 INFO pid=32068) [core.py:402] init engine (profile, create kv cache, warmup model) took 0.18 s
(2026-11-23T19:26:12.663+0000 INFO pid=32029) [entry.py:140] Starting vLLM server on http://127.0.0.1:35793
(2026-11-23T19:26:13.174+0000 INFO pid=32029) [on.py:62] Application startup complete.
"""  # noqa: E501

# vLLM 0.32 on a CPU, an engine in this process that compiles.
CPU_COMPILED = """\
(2026-11-23T19:33:39.899+0000 INFO pid=781) [model.py:733] Resolved architecture: LlamaForCausalLM
(2026-11-23T19:33:40.132+0000 INFO pid=781) [cpu_model_runner.py:68] Starting to load model demo...
(2026-11-23T19:33:40.206+0000 INFO pid=781) [default_loader.py:501] Loading weights took 0.01 seconds
(2026-11-23T19:33:41.254+0000 INFO pid=781) [cpu_model_runner.py:87] Warming up model for the compilation...
(2026-11-23T19:34:18.734+0000 INFO pid=781) [monitor.py:91] [backbone] Initial profiling/warmup run took 0.02 s
(2026-11-23T19:34:19.432+0000 INFO pid=781) [cpu_model_runner.py:91] Warming up done.
(2026-11-23T19:34:19.471+0000 INFO pid=781) [core.py:402] init engine (profile, create kv cache, warmup model) took 38.22 s
"""  # noqa: E501

# The formats in vLLM's source for GPUs, two workers of which the second is slower.
GPU_SERVER = """\
(2026-11-23T10:00:20.000+0000 INFO pid=1) [api_server.py:100] vLLM API server version 0.26.0
(2026-11-23T10:00:40.000+0000 INFO pid=3) [gpu_model_runner.py:4700] Starting to load model meta/llama...
(2026-11-23T10:00:40.500+0000 INFO pid=4) [gpu_model_runner.py:4700] Starting to load model meta/llama...
(2026-11-23T10:00:47.000+0000 INFO pid=3) [default_loader.py:300] Loading weights took 6.50 seconds
(2026-11-23T10:00:48.000+0000 INFO pid=3) [gpu_model_runner.py:4800] Model loading took 14.99 GiB memory and 8.000000 seconds
(2026-11-23T10:01:00.000+0000 INFO pid=3) [monitor.py:60] torch.compile took 10.00 s in total
(2026-11-23T10:01:02.000+0000 INFO pid=4) [monitor.py:60] torch.compile took 11.50 s in total
(2026-11-23T10:01:03.000+0000 INFO pid=4) [monitor.py:60] [eagle_head] torch.compile took 0.50 s in total
(2026-11-23T10:01:15.000+0000 INFO pid=3) [gpu_model_runner.py:6500] Graph capturing finished in 5 secs, took 0.61 GiB
(2026-11-23T10:01:15.000+0000 INFO pid=4) [gpu_model_runner.py:6500] Graph capturing finished in 7 secs, took 0.61 GiB
(2026-11-23T10:01:19.000+0000 INFO pid=2) [core.py:350] init engine (profile, create kv cache, warmup model) took 30.00 s
(2026-11-23T10:01:22.000+0000 INFO pid=1) [on.py:62] Application startup complete.
"""  # noqa: E501


def test_a_server_on_a_cpu() -> None:
    found = parse_start_log(CPU_SERVER, at("19:25:45.300"), None, at("19:26:13.224"))
    assert found.model_dump() == pytest.approx(
        {
            "process_s": 9.108,
            "engine_process_s": 15.719,
            "load_s": 1.617,  # 10.127 until 11.924 less the 0.18 of what came after
            "compile_s": None,
            "capture_s": None,
            "warmup_s": 0.18,
            "server_s": 1.25,
            "first_token_s": 0.05,
        },
        abs=1e-4,
    )
    assert found.total_s == pytest.approx(at("19:26:13.224") - at("19:25:45.300"))


def test_a_cpu_names_no_duration_of_its_compilation() -> None:
    found = parse_start_log(
        CPU_COMPILED, at("19:33:39.800"), at("19:34:20.000"), at("19:34:21.000")
    )
    assert found.compile_s == pytest.approx(38.178, abs=1e-4)
    assert found.warmup_s == pytest.approx(0.042, abs=1e-4)
    assert found.total_s == pytest.approx(41.2)


def test_a_server_on_gpus_is_as_slow_as_its_slowest_worker() -> None:
    found = parse_start_log(GPU_SERVER, at("10:00:00.000"), None, at("10:01:23.000"))
    assert found == ColdStartParts(
        process_s=20,
        engine_process_s=20,
        load_s=9,  # 10:00:40 until 30 s before 10:01:19
        compile_s=12,
        capture_s=7,
        warmup_s=11,
        server_s=3,
        first_token_s=1,
    )
    assert found.total_s == 83


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("torch.compile takes 34.61 s in total", 34.61),
        ("torch.compile took 34.61 s in total", 34.61),
        ("[backbone] torch.compile took 34.61 s in total", 34.61),
        (
            "torch.compile and initial profiling/warmup run together took 34.61 s in total",
            34.61,
        ),
        ("Compiling a graph for general shape takes 27.31 s", None),
        ("Initial profiling/warmup run took 1.20 s", None),
    ],
)
def test_every_way_to_say_compiled(said: str, seconds: float | None) -> None:
    assert parse_start_log(said, 0, 100, 100).compile_s == seconds


@pytest.mark.parametrize(
    ("said", "compile_s", "warmup_s"),
    [
        ("took 47.64 seconds", None, 47.64),
        ("took 47.64 s", None, 47.64),
        ("took 212.68 s (compilation: 13.01 s)", 13.01, 199.67),
        (
            "took 50.00 s (compilation: 30.00 s — language_model: 20.00 s, encoder: 10.00 s)",
            30,
            20,
        ),
    ],
)
def test_every_way_to_say_initialised(said: str, compile_s: float | None, warmup_s: float) -> None:
    init = "init engine (profile, create kv cache, warmup model)"
    line = f"INFO 06-05 09:08:36 [core.py:167] {init} {said}"
    found = parse_start_log(line, 0, 300, 300)
    assert found.compile_s == compile_s
    assert found.warmup_s == pytest.approx(warmup_s)
    assert found.process_s is None, "that line does not say when it was written"
    assert found.total_s == pytest.approx(300)


@pytest.mark.parametrize(
    "said",
    [
        "Model loading took 7.6065 GiB and 8.000000 seconds",
        "Model loading took 7.61 GiB memory and 8.000000 seconds",
    ],
)
def test_loading_began_before_it_was_said_to_be_over(said: str) -> None:
    lines = [
        "(2026-11-23T10:00:01.000+0000 INFO pid=1) [a.py:1] hello",
        f"(2026-11-23T10:00:11.000+0000 INFO pid=2) [model_runner.py:1] {said}",
    ]
    found = parse_start_log(
        "\n".join(lines), at("10:00:00.000"), at("10:00:20.000"), at("10:00:20.000")
    )
    assert (found.engine_process_s, found.load_s, found.server_s) == (2, 8, 9)


def test_a_log_that_says_nothing_leaves_the_whole() -> None:
    found = parse_start_log("Killed", 100, None, 130)
    assert found == ColdStartParts(server_s=30, first_token_s=0)
    assert found.total_s == 30


def test_lines_of_an_earlier_start_are_not_the_first_of_this_one() -> None:
    found = parse_start_log(CPU_SERVER, at("19:26:00.000"), None, at("19:26:13.224"))
    assert found.process_s == pytest.approx(9.272)


# -- The logging configuration -------------------------------------------------------------------

SPEAKER = """
import json, logging, logging.config, sys
logging.getLogger("vllm.v1.metrics.loggers")  # as in vLLM, made before the configuration
logging.config.dictConfig(json.load(open(sys.argv[1])))
engine = logging.getLogger("vllm.v1.engine.core")
engine.info("Model loading took 1.00 GiB memory and 2.500000 seconds")
logging.getLogger("vllm.v1.metrics.loggers").info("Iteration(7): 0 context requests")
logging.getLogger("vllm.v1.metrics.loggers").warning("not to be missed")
logging.getLogger("uvicorn.access").info("GET /metrics")
logging.getLogger("uvicorn.error").info("Application startup complete.")
try:
    raise ValueError("no such dtype")
except ValueError:
    engine.exception("EngineCore failed to start.")
logging.getLogger("vllm.entrypoints").error("ValueError: later and last")
"""


@pytest.fixture
def spoken(tmp_path: Path) -> str:
    config = write_logging_config(tmp_path / "logging.json")
    return subprocess.run(
        [sys.executable, "-c", SPEAKER, str(config)], capture_output=True, text=True, check=True
    ).stdout


def test_the_start_is_said_and_the_steps_are_not(spoken: str) -> None:
    now = datetime.now().timestamp()
    parts = parse_start_log(spoken, now - 3600, None, now)
    assert parts.load_s == 2.5
    assert parts.process_s == pytest.approx(3600, abs=60)
    assert parts.first_token_s == pytest.approx(0, abs=60)
    assert "Application startup complete." in spoken
    assert "not to be missed" in spoken
    assert "Iteration" not in spoken
    assert "GET" not in spoken


def test_a_failure_is_told_without_what_stands_before_it(spoken: str) -> None:
    assert telling_line(spoken) == "ValueError: later and last"
    until_the_exception = spoken[: spoken.index("later and last")].rsplit("\n", 1)[0]
    assert telling_line(until_the_exception) == "ValueError: no such dtype"


def test_vllm_makes_no_object_that_prints_steps_where_its_logger_is_above_info() -> None:
    assert logging_config()["loggers"]["vllm.v1.metrics.loggers"]["level"] == "WARNING"
    assert logging_config()["disable_existing_loggers"] is False


# -- An engine in this process -------------------------------------------------------------------


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A vllm.logger that, like vLLM's, says a thing once and holds its level at WARNING."""
    package, logger = ModuleType("vllm"), ModuleType("vllm.logger")
    package.logger = logger  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.logger", logger)
    root = logging.getLogger("vllm")
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(root, "propagate", False)
    monkeypatch.setattr(root, "handlers", [])
    root.setLevel(logging.WARNING)
    return logger


def test_lines_are_captured_meanwhile_and_levels_are_given_back(stub: ModuleType) -> None:
    engine, steps = (logging.getLogger(f"vllm.v1.{x}") for x in ("core", "metrics.loggers"))
    root = logging.getLogger("vllm")
    handlers = list(root.handlers)
    engine.info("before")
    with captured_start_log() as lines:
        engine.info("Model loading took 1.00 GiB memory and %.6f seconds", 2.5)
        steps.info("Iteration(7)")
    engine.info("after")
    now = datetime.now().timestamp()
    assert len(lines) == 1
    assert parse_start_log(lines[0], now - 10, now, now).load_s == 2.5
    assert (root.level, steps.level) == (logging.WARNING, logging.NOTSET)
    assert root.handlers == handlers


def test_levels_are_given_back_after_a_failure(stub: ModuleType) -> None:
    with pytest.raises(ValueError), captured_start_log():
        raise ValueError
    assert logging.getLogger("vllm").level == logging.WARNING


def test_what_an_earlier_engine_said_is_said_again(stub: ModuleType) -> None:
    from functools import lru_cache

    @lru_cache
    def once(said: str) -> None:
        logging.getLogger("vllm.v1.core").info(said)

    stub._print_info_once = once  # type: ignore[attr-defined]
    for _ in range(2):
        with captured_start_log() as lines:
            once("Loading weights took 0.04 seconds")
        assert len(lines) == 1
