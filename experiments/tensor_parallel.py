"""What does a second GPU give one replica, and how much of its steps is communication?

    python -m experiments.tensor_parallel [FOLDER] [--out tensor_parallel.html]
    python -m experiments.tensor_parallel FOLDER --measure CHECKPOINT ... [--load-format dummy]

The second runs experiments/tensor-parallel.yaml on each checkpoint first, and profiles some steps of the
engines that span two GPUs. What lies in FOLDER is not measured again.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd

from serving.plan import EngineArgs, Variant
from simulations import theme
from workbench.measure.outcome import Request
from workbench.measure.points import enter, once
from workbench.measure.study import Study, StudyResult, ratio_over_repeats, read_study
from workbench.measure.vllm_offline import OfflineEngine
from workbench.progress import print_table

if TYPE_CHECKING:
    import plotly.graph_objects as go

RESULTS = Path(__file__).parent / "results" / "h100" / "tensor-parallel"
STUDY = Path(__file__).parent / "tensor-parallel.yaml"
_COMMUNICATION = ("nccl", "cross_device_reduce", "all_reduce", "allreduce", "all_gather")
"""In the names of kernels: NCCL's, vLLM's own all-reduce over peer memory, and others'."""
_STEPS = 20
_KINDS = (("decode", 32, 128), ("decode", 1, 128), ("decode", 128, 128), ("prefill", 8, 1024))
"""Steps to profile: what they do, sequences, prompt tokens of each."""


class ProfiledEngine(OfflineEngine):
    """vLLM in this process with torch's profiler at hand, which costs nothing until it is started."""

    def __init__(self, variant: Variant, engine_args: EngineArgs, traces: Path) -> None:
        super().__init__(variant, engine_args)
        self._traces = traces

    def _arguments(self) -> dict[str, Any]:
        profiler = {
            "profiler": "torch",
            "torch_profiler_dir": str(self._traces),
            "torch_profiler_with_stack": False,
        }
        return {**super()._arguments(), "profiler_config": profiler}

    def profile(self, doing: str, sequences: int, prompt_tokens: int) -> list[Path]:
        """Traces, one per GPU, of one prefill of all sequences or of some steps that only decode."""
        known = set(self._traces.rglob("*.json*"))
        prompt = tuple(range(2, prompt_tokens + 2))
        if doing == "prefill":
            self._engine.start_profile()
        for number in range(sequences):
            self.add(number, Request(scheduled_s=0.0, prompt_token_ids=prompt, output_tokens=64))
        if doing == "decode":
            for _ in range(
                2 + sequences * prompt_tokens // self.engine_args.max_num_batched_tokens
            ):
                self._engine.step()
            self._engine.start_profile()
        for _ in range(_STEPS if doing == "decode" else 1):
            self._engine.step()
        self._engine.stop_profile()
        while self._engine.has_unfinished_requests():
            self._engine.step()
        self._records.clear()
        return sorted(set(self._traces.rglob("*.json*")) - known)


def measure(
    study: Study, variants: Sequence[Variant], folder: Path, sizes: Sequence[int] = (1, 2)
) -> Iterator[str]:
    """Measure each engine's points, profile those on several GPUs; gives the names of what is done.

    Args:    sizes: of tensor parallelism, to take from the study's.
    Raises:  EngineError: vLLM did not start.
    """
    study.write(folder / "study.json")
    for points in study.points(variants):
        first = points[0]
        gpus = first.engine_args.tensor_parallel_size
        kept = folder / f"communication-{first.variant.name}.json"
        left = [point for point in points if point.finished(folder) is None]
        if gpus not in sizes or not (left or (gpus > 1 and not kept.exists())):
            continue
        with ExitStack() as stack:
            engine = ProfiledEngine(
                first.variant, first.engine_args, Path(stack.enter_context(TemporaryDirectory()))
            )
            started = partial(_given, engine)
            enter(stack, first.variant, first.engine_args, started, folder)
            for point in left:
                once(point, started, folder)
                yield point.name
            if gpus > 1:
                rows = [
                    {"doing": doing, "sequences": sequences, "gpu": gpu, **kernel_times(trace)}
                    for doing, sequences, tokens in _KINDS
                    for gpu, trace in enumerate(engine.profile(doing, sequences, tokens))
                ]
                kept.write_text(json.dumps(rows, indent=1) + "\n")
                yield kept.name


def _given(engine: ProfiledEngine, *_: object) -> ProfiledEngine:
    return engine


def kernel_times(trace: Path) -> dict[str, float]:
    """Milliseconds that kernels ran on one GPU in a trace of torch's profiler.

    A kernel that communicates also waits for the other GPUs: that counts.

    Returns: busy_ms (all kernels), communication_ms, span_ms (first kernel's begin to last one's end).
    """
    text = gzip.decompress(trace.read_bytes()) if trace.suffix == ".gz" else trace.read_bytes()
    kernels = [one for one in json.loads(text)["traceEvents"] if one.get("cat") == "kernel"]
    talks = [one["dur"] for one in kernels if _communicates(one["name"])]
    begin = min((one["ts"] for one in kernels), default=0.0)
    end = max((one["ts"] + one["dur"] for one in kernels), default=0.0)
    return {
        "busy_ms": sum(one["dur"] for one in kernels) / 1e3,
        "communication_ms": sum(talks) / 1e3,
        "span_ms": (end - begin) / 1e3,
    }


def _communicates(kernel: str) -> bool:
    return any(part in kernel.lower() for part in _COMMUNICATION)


def shares(folder: Path) -> pd.DataFrame:
    """Communication's share of the kernels' time, by variant and kind of step, mean over GPUs."""
    rows = [
        {"variant": path.stem.removeprefix("communication-"), **row}
        for path in sorted(folder.glob("communication-*.json"))
        for row in json.loads(path.read_text())
    ]
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    times = table.groupby(["variant", "doing", "sequences"], sort=False)[
        ["busy_ms", "communication_ms", "span_ms"]
    ].mean()
    return times.assign(share=times["communication_ms"] / times["busy_ms"]).reset_index()


def speedups(result: StudyResult) -> pd.DataFrame:
    """Throughput on two GPUs over one, by variant, lengths and batch; 95 % interval over repeats.

    Returns: columns variant, prompt_tokens, output_tokens, batch, speedup, low, high, and
             tpot_p50_s_1, tpot_p50_s_2, ttft_p50_s_1, ttft_p50_s_2 by number of GPUs.
    """
    table = result.frame()
    table = table[table["valid"]]
    keys = ["variant", "prompt_tokens", "output_tokens", "batch"]
    rows: list[dict[str, Any]] = []
    for at, of_load in table.groupby(keys, sort=False):
        sides = {
            gpus: of_load[of_load["tensor_parallel_size"] == gpus].set_index("repeat")
            for gpus in (1, 2)
        }
        ratios = (sides[2]["output_tokens_per_s"] / sides[1]["output_tokens_per_s"]).dropna()
        if ratios.empty:
            continue
        gain = ratio_over_repeats(ratios)
        latencies = {
            f"{metric}_{gpus}": float(side[metric].mean())
            for metric in ("ttft_p50_s", "tpot_p50_s")
            for gpus, side in sides.items()
        }
        named = dict(zip(keys, list(at), strict=True))
        rows.append(
            {**named, "speedup": gain.value, "low": gain.low, "high": gain.high, **latencies}
        )
    return pd.DataFrame(rows)


def figure(table: pd.DataFrame) -> go.Figure:
    """Speed-up by batch, a line per variant and lengths."""
    drawn = theme.canvas(
        "Tokens a second of two GPUs over one, tensor parallel",
        theme.batch_axis(table["batch"]),
        theme.axis("speed-up (×)", rangemode="tozero"),
    )
    lines = table.groupby(["variant", "prompt_tokens", "output_tokens"], sort=False)
    named = {f"{at[0]}, {at[1]:g} → {at[2]:g} tokens": rows for at, rows in lines}
    for name, look in theme.looks(named).items():
        rows = named[name].sort_values("batch")
        drawn.add_scatter(
            x=rows["batch"],
            y=rows["speedup"],
            error_y=theme.error_bars(rows["speedup"], rows["low"], rows["high"]),
            name=name,
            mode="lines+markers",
            line={"color": look.colour, "width": 2},
            marker={"symbol": look.symbol, "size": 8},
        )
    return drawn


def main() -> None:
    """Measure where that is asked, print the tables, and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS)
    parser.add_argument("--measure", metavar="CHECKPOINT", nargs="+", type=Path, default=[])
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=[1, 2], help="of tensor parallelism"
    )
    parser.add_argument(
        "--load-format", help="dummy: weights of no meaning, from config.json alone"
    )
    parser.add_argument("--out", type=Path, default=Path("tensor_parallel.html"))
    asked = parser.parse_args()
    if asked.measure:
        study = Study.load(STUDY)
        if asked.load_format:
            engine = study.engine.model_copy(update={"load_format": asked.load_format})
            study = study.model_copy(update={"engine": engine})
        variants = [Variant(name=path.name.lower(), model=str(path)) for path in asked.measure]
        for done in measure(study, variants, asked.folder, asked.sizes):
            print(done, flush=True)
    result = read_study(asked.folder)
    table = speedups(result)
    if table.empty:
        print("Not measured on one GPU and on two yet.")
        return
    print_table(table)
    print_table(shares(asked.folder))
    for environment in sorted({m.environment.describe() for m in result.measurements}):
        print(f"measured on {environment}")
    asked.out.write_text(figure(table).to_html(include_plotlyjs=True))
    print(f"figure: {asked.out}")


if __name__ == "__main__":
    main()
