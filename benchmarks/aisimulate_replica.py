"""The same requests in AISimulate, NVIDIA's simulator of vLLM: a peer of our engine twin.

    PYTHON benchmarks/aisimulate_replica.py < question.json

It needs ai-dynamo-runtime, which holds AISimulate's engine, and nothing of ours, so that it can run in
an environment of its own. It reads requests from a trace in Mooncake's form. Of its timing models only
`fixed` has a counterpart here: every step lasts `decode_ms`, prefills are free. Answers with one line of
JSON: requests a second of CPU time and what came out, or null where it is not installed.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from importlib.metadata import version
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_BLOCK_TOKENS = 512
"""Of the trace: each block has an id, and no two requests share one."""


def engine(asked: dict[str, Any]) -> dict[str, Any]:
    """The engine in the form that the runtime reads."""
    return {
        "num_gpu_blocks_is_explicit": True,
        "engine": {
            "backend": "vllm",
            "num_gpu_blocks": asked["kv_blocks"],
            "block_size": asked["block_size_tokens"],
            "max_model_len": asked["max_model_len"],
            "max_num_seqs": asked["max_num_seqs"],
            "max_num_batched_tokens": asked["max_num_batched_tokens"],
            "enable_prefix_caching": False,
            "timing_model": {
                "type": "fixed",
                "prefill_ms": 0.0,
                "decode_ms": asked["step_s"] * 1e3,
            },
        },
    }


def write_trace(asked: dict[str, Any], path: Path) -> None:
    """The requests, a line of JSON each."""
    ids = count()
    columns = (asked["arrived_at_s"], asked["prompt_tokens"], asked["output_tokens"])
    with path.open("w") as lines:
        for at_s, prompt, output in zip(*columns, strict=True):
            blocks = [next(ids) for _ in range(-(-prompt // _BLOCK_TOKENS))]
            row = {
                "timestamp": at_s * 1e3,
                "input_length": prompt,
                "output_length": output,
                "hash_ids": blocks,
            }
            lines.write(json.dumps(row) + "\n")


def main() -> None:
    """Read the question, print the answer."""
    asked = json.load(sys.stdin)
    try:
        runtime = importlib.import_module("dynamo._core")
    except ImportError:
        print("null")
        return
    spent_s: list[tuple[float, float]] = []
    report: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.jsonl"
        write_trace(asked, trace)
        for _ in range(asked["repeats"]):
            wall, cpu = time.perf_counter(), time.process_time()
            report = runtime.run_mocker_trace_replay(
                [trace],
                extra_engine_args=engine(asked),
                num_workers=asked["replicas"],
                trace_block_size=_BLOCK_TOKENS,
            ).summary
            spent_s.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu, wall = min(spent_s)
    requests = report["completed_requests"]
    answer = {
        "version": version("ai-dynamo-runtime"),
        "requests": requests,
        "requests_per_s": requests / cpu,
        "cpu_us_per_request": cpu / requests * 1e6,
        "us_per_request": wall / requests * 1e6,
        "e2e_mean_s": report["mean_e2e_latency_ms"] / 1e3,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
