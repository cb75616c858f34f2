"""The load client against a server that computes nothing: how much does one core send and read?

    python -m benchmarks.client

Sending: Poisson arrivals, answers of one chunk. The target is 2,000 sends a second from one process
with a p99 lateness below 5 ms.

Reading: 200 streams that tick together, as the sequences of a batch do, ever faster. The client keeps
up where the p99 of its lag is below the gap of a stream: each chunk is read before the next one comes.
The peer is the request function of `vllm bench serve`, which reads the same streams in the same run.

The last line is JSON.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from simulations.traffic import Fixed, Poisson, Workload
from workbench.apart import Child, Link
from workbench.measure.environment import Environment
from workbench.measure.load import send
from workbench.measure.outcome import Request

TARGET_SENDS_PER_S = 2000
TARGET_LATENESS_S = 5e-3
_STREAMS = 200
_SECONDS = 5.0
_COMPARED_AT = 10_000


@contextmanager
def dummy_server(gap_s: float = 0.01) -> Iterator[str]:
    """A `benchmarks.dummy_server` in a process of its own; yields its address."""
    command = [sys.executable, "-m", "benchmarks.dummy_server", str(gap_s)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


def sends(url: str, rate_rps: float) -> dict[str, float]:
    """Lateness of one process at a rate of Poisson sends."""
    arrivals = Workload(
        arrivals=Poisson(rate_rps=rate_rps),
        prompt_tokens=Fixed(tokens=64),
        output_tokens=Fixed(tokens=1),
        duration_s=_SECONDS,
    ).schedule()
    requests = [Request(float(at_s), [1] * 64, 1) for at_s in arrivals.arrived_at_s]
    load = send(url, "dummy", requests, processes=1)
    late_s = np.array([o.sent_s - o.scheduled_s for o in load.outcomes])
    return {
        "sends_per_s": rate_rps,
        "failed": float(sum(o.error is not None for o in load.outcomes)),
        "lateness_p50_ms": float(np.percentile(late_s, 50)) * 1e3,
        "lateness_p99_ms": float(np.percentile(late_s, 99)) * 1e3,
        "cpu_share": load.cpu_share,
    }


def reads(url: str, chunks_per_s: float) -> dict[str, float]:
    """Lag of one process that reads 200 streams of so many chunks together."""
    gap_s = _STREAMS / chunks_per_s
    tokens = int(_SECONDS / gap_s)
    # Not all at once: a burst of sends is not what is measured here.
    requests = [Request(i / _STREAMS, [1] * 64, tokens) for i in range(_STREAMS)]
    load = send(url, f"gap-{gap_s}", requests, processes=1)
    read = sum(len(o.itl_s) + 1 for o in load.outcomes)
    spent_s = max(o.end_s for o in load.outcomes) - min(o.first_token_s for o in load.outcomes)
    return {
        "chunks_per_s": chunks_per_s,
        "read_per_s": read / spent_s,
        "lag_p99_ms": load.lag_p99_s * 1e3,
        "lag_p99_over_gap": load.lag_p99_s / gap_s,
        "cpu_share": load.cpu_share,
        "cpu_us_per_chunk": load.cpu_share * spent_s / read * 1e6,
    }


def stock_reads(link: Link, url: str, chunks_per_s: float) -> None:
    """CPU time per chunk of `vllm bench serve`'s own request function on the same streams."""
    import aiohttp
    from vllm.benchmarks.lib.endpoint_request_func import (
        RequestFuncInput,
        async_request_openai_completions,
    )

    gap_s = _STREAMS / chunks_per_s
    tokens = int(_SECONDS / gap_s)

    async def work() -> list[Any]:
        asked = RequestFuncInput(
            prompt=[1] * 64,
            api_url=f"{url}/v1/completions",
            prompt_len=64,
            output_len=tokens,
            model=f"gap-{gap_s}",
        )
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            return await asyncio.gather(
                *(async_request_openai_completions(asked, session) for _ in range(_STREAMS))
            )

    began = time.process_time()
    outputs = asyncio.run(work())
    spent_s = time.process_time() - began
    read = sum(len(output.itl) + 1 for output in outputs)
    link.send({"read": read, "cpu_us_per_chunk": spent_s / read * 1e6})


def main() -> None:
    """Print tables, and JSON last."""
    found: dict[str, Any] = {"hardware": Environment.capture().hardware}
    with dummy_server() as url:
        sends(url, 100)  # not counted: what is done only once
        found["sends"] = [sends(url, rate) for rate in (500, 1000, TARGET_SENDS_PER_S, 4000)]
        for row in found["sends"]:
            print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
        at_target = next(r for r in found["sends"] if r["sends_per_s"] == TARGET_SENDS_PER_S)
        found["lateness_p99_over_target"] = at_target["lateness_p99_ms"] / (TARGET_LATENESS_S * 1e3)
        found["reads"] = []
        for rate in (2_500, 5_000, 10_000, 20_000, 40_000):
            found["reads"].append(reads(url, rate))
            row = found["reads"][-1]
            print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
        kept = [row["read_per_s"] for row in found["reads"] if row["lag_p99_over_gap"] < 1]
        found["keeps_up_with_chunks_per_s"] = max(kept, default=0.0)
        with Child(stock_reads, url, float(_COMPARED_AT)) as stock:
            found["stock"] = next(iter(stock))
        ours = next(r for r in found["reads"] if r["chunks_per_s"] == _COMPARED_AT)
        found["cpu_per_chunk_over_stock"] = (
            ours["cpu_us_per_chunk"] / found["stock"]["cpu_us_per_chunk"]
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
