"""Our client beside `vllm bench serve`: the same running server, prompts and send times, alternating.

    python -m benchmarks.vllm_bench [--repeats 8] [--rate 2] [--model FOLDER]

Both get the same prompts, as token ids, and the same schedule. Pairs are run in the order ours,
theirs, theirs, ours, so that drift cancels. What is compared is each tool's own arithmetic: their
`benchmark()` result against our `Measurement.summary()`. The target: medians within 2 %. Either tool
adds something to a TTFT by itself, which is measured on a server that computes nothing. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.client import dummy_server
from serving.errors import InputError
from serving.plan import EngineArgs, Variant
from simulations.traffic import Constant, Fixed, Uniform, Workload
from workbench.apart import Child, Link
from workbench.measure import measure
from workbench.measure.compare import interval
from workbench.measure.engine import Engine
from workbench.measure.load import send
from workbench.measure.outcome import Request
from workbench.measure.prompts import requests_for
from workbench.measure.vllm_server import ServerEngine
from workbench.model import shipped_checkpoint
from workbench.settings import engine_for_this_machine

TARGET = 0.02
COMPARED = {
    "ttft_p50_s": "median_ttft_ms",
    "tpot_p50_s": "median_tpot_ms",
    "itl_p50_s": "median_itl_ms",
    "e2e_p50_s": "median_e2el_ms",
    "output_tokens_per_s": "output_throughput",
}
_NET = " less the client's own"
_WITHOUT = f"ttft_p50_s{_NET}"
_GAP_S = 0.005
Pair = tuple[dict[str, float], dict[str, float]]


def theirs(link: Link, tokenizer: str) -> None:
    """Runs `vllm bench serve`'s benchmark() for each (address, model, requests) that comes."""
    from transformers import AutoTokenizer
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.benchmarks.serve import TaskType, benchmark

    options: dict[str, Any] = {
        "task_type": TaskType.GENERATION,
        "endpoint_type": "vllm",
        "tokenizer": AutoTokenizer.from_pretrained(tokenizer),
        "logprobs": None,
        "request_rate": float("inf"),
        "burstiness": 1.0,
        "disable_tqdm": True,
        "num_warmups": 0,
        "profile": False,
        "selected_percentile_metrics": ["ttft", "tpot", "itl", "e2el"],
        "selected_percentiles": [99.0],
        "ignore_eos": True,
        "goodput_config_dict": {},
        "max_concurrency": None,
        "lora_modules": None,
        "extra_headers": None,
        "extra_body": {"temperature": 0.0},
        "ready_check_timeout_sec": 0,
        "self_timed": True,
    }
    known = inspect.signature(benchmark).parameters
    if "self_timed" not in known:
        raise InputError("this vLLM cannot replay send times", remedy="Install 0.30 or later.")
    while True:
        url, model, requests = link.receive()
        samples = [
            SampleRequest(
                prompt=list(request.prompt_token_ids),
                prompt_len=len(request.prompt_token_ids),
                expected_output_len=request.output_tokens,
                timestamp=request.scheduled_s,
            )
            for request in requests
        ]
        server = {"api_url": f"{url}/v1/completions", "base_url": url}
        named = {"model_id": model, "model_name": model}
        found = asyncio.run(benchmark(**options, **server, **named, input_requests=samples))
        link.send({name: value for name, value in found.items() if isinstance(value, float | int)})


def ours(engine: Engine, variant: Variant, args: EngineArgs, load: Workload, folder: Path) -> Any:
    """(summary of our measurement, why it cannot be trusted)."""
    measured = measure(variant, load, engine_args=args, folder=folder, engine=engine, name="ours")
    return measured.summary(), measured.invalid


def alternate(
    engine: ServerEngine,
    stock: Child,
    variant: Variant,
    args: EngineArgs,
    load: Workload,
    repeats: int,
    folder: Path,
) -> tuple[list[Pair], set[str]]:
    """Pairs of (ours, theirs), and why some of ours cannot be trusted; the first pair warms up."""
    pairs: list[Pair] = []
    doubts: set[str] = set()
    for repeat in range(-1, repeats):
        now = load.at(seed=load.seed + repeat + 1)
        found: dict[str, Any] = {}
        for who in ("ours", "theirs") if repeat % 2 else ("theirs", "ours"):
            if who == "ours":
                found[who], why = ours(engine, variant, args, now, folder)
                doubts |= set(why) if repeat >= 0 else set()
            else:
                stock.send((engine.url, variant.name, requests_for(variant, now, args)))
                found[who] = stock.receive()[1]
        if repeat >= 0:
            pairs.append((found["ours"], found["theirs"]))
            ratio = found["ours"]["ttft_p50_s"] * 1e3 / found["theirs"]["median_ttft_ms"]
            print(f"pair {repeat + 1} of {repeats}: TTFT p50 {ratio:.3f}", flush=True)
    return pairs, doubts


def floors(stock: Child, requests: Sequence[Request]) -> tuple[float, float]:
    """Median TTFT, seconds, that our client and theirs see of a server that computes nothing.

    What each tool adds by itself: on a server it is part of every TTFT that the tool reports.
    """
    model = f"gap-{_GAP_S}"
    with dummy_server(_GAP_S) as url:
        done = send(url, model, requests).outcomes
        stock.send((url, model, requests))
        theirs_s = stock.receive()[1]["median_ttft_ms"] / 1e3
    seen = [one.first_token_s - one.sent_s for one in done if one.first_token_s and one.sent_s]
    return float(np.median(seen)), theirs_s


def compare(pairs: list[Pair], own_s: tuple[float, float]) -> list[dict[str, Any]]:
    """Ratio ours / theirs of each metric, geometric mean over pairs with a bootstrap interval.

    Args:    own_s: what each tool adds to a TTFT by itself; a last row is without it.
    """
    rows = []
    for name, their_name in [*COMPARED.items(), (_WITHOUT, COMPARED["ttft_p50_s"])]:
        scale = 1e3 if their_name.endswith("_ms") else 1.0
        without = own_s if name == _WITHOUT else (0.0, 0.0)
        mine = np.array([one[name.removesuffix(_NET)] for one, _ in pairs]) - without[0]
        stock = np.array([other[their_name] / scale for _, other in pairs]) - without[1]
        ratio, low, high = interval(np.log(mine / stock))
        medians = {"ours": float(np.median(mine)), "theirs": float(np.median(stock))}
        rows.append({"metric": name, **medians, "ratio": ratio, "low": low, "high": high})
    return rows


def main() -> None:
    """Print a table, and JSON last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    parser.add_argument("--model", default=str(shipped_checkpoint()))
    asked = parser.parse_args()
    variant, args = Variant(name="model", model=asked.model), engine_for_this_machine()
    load = Workload(
        # An even rate at which requests hardly meet: what differs then is the client.
        arrivals=Constant(rate_rps=asked.rate),
        prompt_tokens=Uniform(min_tokens=192, max_tokens=320),
        output_tokens=Fixed(tokens=64),
        duration_s=asked.seconds,
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = stack.enter_context(ServerEngine(variant, args, folder=folder))
        stock = stack.enter_context(Child(theirs, variant.model))
        pairs, doubts = alternate(engine, stock, variant, args, load, asked.repeats, folder)
        own_s = floors(stock, requests_for(variant, load, args))
    rows = compare(pairs, own_s)
    for row in rows:
        print(
            f"{row['metric']:<32} ours {row['ours']:.5g}  theirs {row['theirs']:.5g}"
            f"  ratio {row['ratio']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
        )
    print(f"TTFT of a server that computes nothing: ours {own_s[0]:.5f}, theirs {own_s[1]:.5f}")
    worst = max(abs(row["ratio"] - 1) for row in rows)
    print(f"largest difference {worst:.2%}, target {TARGET:.0%}")
    for doubt in sorted(doubts):
        print(f"doubt: {doubt}")
    print(
        json.dumps(
            {"rows": rows, "own_s": own_s, "largest_difference": worst, "doubts": sorted(doubts)}
        )
    )


if __name__ == "__main__":
    main()
