"""The same requests in `aisimulate`, NVIDIA's simulator of vLLM: a peer of our engine twin.

    PYTHON benchmarks/aisimulate_replica.py < question.json

It needs aisimulate and nothing of ours, so that it can run in an environment of its own. Its engine
is called as its own runner does it: one JSON document of topology, engine and requests. Of its
timing models only `fixed` has a counterpart here: every step lasts `decode_ms`, prefills are free.
Answers with one line of JSON: requests a second of CPU time and what came out, or null where it is
not installed.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from importlib.metadata import version
from typing import Any


def replay_spec(asked: dict[str, Any]) -> dict[str, Any]:
    """The question in the form that aisimulate 0.13 reads."""
    rank = {
        "backend": "vllm",
        "num_gpu_blocks": asked["kv_blocks"],
        "block_size": asked["block_size_tokens"],
        "max_model_len": asked["max_model_len"],
        "max_num_seqs": asked["max_num_seqs"],
        "max_num_batched_tokens": asked["max_num_batched_tokens"],
        "enable_prefix_caching": False,
        "timing_model": {"type": "fixed", "prefill_ms": 0.0, "decode_ms": asked["step_s"] * 1e3},
    }
    workers = {"initial_workers": asked["replicas"], "startup_delay_ms": 0.0}
    parts = (asked["arrived_at_s"], asked["prompt_tokens"], asked["output_tokens"])
    return {
        "version": 1,
        "topology": {"kind": "aggregated", "workers": workers},
        "engine": {
            "dp_size": 1,
            "tensor_parallel_size": 1,
            "num_gpu_blocks_is_explicit": True,
            "rank": rank,
        },
        "adapters": {
            "placement": {"provider": "round_robin", "config": None},
            "scaling": {"provider": "none", "config": None},
        },
        "max_sim_time_ms": None,
        "max_in_flight": None,
        "record_per_request": False,
        "sla": {},
        "requests": [
            {
                "id": str(i),
                "arrival_time_ms": at_s * 1e3,
                "input_tokens": prompt,
                "output_tokens": output,
                "metadata": None,
            }
            for i, (at_s, prompt, output) in enumerate(zip(*parts, strict=True))
        ],
    }


def main() -> None:
    """Read the question, print the answer."""
    asked = json.load(sys.stdin)
    try:
        runtime = importlib.import_module("aisimulate._runtime")
    except ImportError:
        print("null")
        return
    spec = json.dumps(replay_spec(asked))
    spent_s: list[tuple[float, float]] = []
    report: dict[str, Any] = {}
    for _ in range(asked["repeats"]):
        wall, cpu = time.perf_counter(), time.process_time()
        report = json.loads(runtime.run_replay_json(spec))
        spent_s.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu, wall = min(spent_s)
    requests = report["completed_requests"]
    answer = {
        "version": version("aisimulate"),
        "requests": requests,
        "requests_per_s": requests / cpu,
        "cpu_us_per_request": cpu / requests * 1e6,
        "us_per_request": wall / requests * 1e6,
        "e2e_mean_s": report["mean_e2e_latency_ms"] / 1e3,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
