"""What a stage found, as the short tables that the command line prints."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from serving.plan import Plan, Variant
from simulations.latency import LatencyModel
from simulations.result import SimResult
from workbench.compress import lineage
from workbench.measure import Measurement, frame
from workbench.payoff import Payoff
from workbench.pipeline import Pipeline
from workbench.results import Results
from workbench.tune import Tuning


def table(pipeline: Pipeline, name: str) -> pd.DataFrame:
    """What a stage found, in the few columns that a reader needs."""
    results = Results(pipeline)
    match name:
        case "compress":
            return variant_table(results.variants(), results.settings.slo.max_quality_loss)
        case "sweep" | "serve":
            return measurement_table(results.measurements("sweep") + results.measurements("serve"))
        case "fit":
            return latency_table(list(results.latency_models().values()))
        case "simulate":
            return pd.read_parquet(pipeline.folder("simulate") / "day.parquet")
        case "verify":
            verification = results.verification() if pipeline.is_done("verify") else None
            if verification is None:
                why = results.untrusted() or "`workbench export` and `workbench verify` do it."
                return pd.DataFrame({"not verified": [why]})
            return verification.rows
        case "export":
            bundle = pipeline.folder("export") / "bundle"
            files = sorted(path for path in bundle.rglob("*") if path.is_file())
            return pd.DataFrame(
                {
                    "file": [str(path.relative_to(bundle)) for path in files],
                    "bytes": [path.stat().st_size for path in files],
                }
            )
        case _:
            return fleet_table(results.tuning())


def variant_table(variants: Sequence[Variant], max_quality_loss: float) -> pd.DataFrame:
    """The lineage as a tree, with size and quality, and whether that is enough."""
    rows = []
    for depth, variant in lineage(variants):
        row = {
            "variant": "  " * (depth - 1) + "└ " * bool(depth) + variant.name,
            "made_by": variant.method,
            # Random weights have no files.
            "mib": variant.size_mib or float("nan"),
        }
        quality = variant.quality
        if quality is not None:
            row |= {
                "perplexity": quality.perplexity.value,
                "agreement": quality.agreement.value,
                "kl_nats": quality.kl_nats.value,
                "task_accuracy": quality.task_accuracy.value,
                "recovery": quality.recovery.value,
                "low": quality.recovery.low,
                "high": quality.recovery.high,
                **{task: score.value for task, score in quality.benchmarks.items()},
                "quality": quality.verdict(max_quality_loss),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def payoff_table(payoff: Payoff) -> pd.DataFrame:
    """What each variant gains at each load, and whether it is on the front."""
    wanted = (
        *("variant", "prompt_tokens", "output_tokens", "batch", "output_tokens_per_s"),
        *("speedup", "low", "high", "ttft_p50_s", "tpot_p50_s", "weights_mib"),
        *("kv_capacity_tokens", "joules_per_token", "usd_per_million_tokens"),
        *("recovery", "quality", "on_front"),
    )
    return payoff.table[[name for name in wanted if name in payoff.table]].reset_index(drop=True)


def measurement_table(points: list[Measurement]) -> pd.DataFrame:
    """Throughput and latency at each load, repeats averaged."""
    columns = ["output_tokens_per_s", "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "e2e_p99_s"]
    keys = ["mode", "variant", "batch", "rate_rps"]
    return frame(points).groupby(keys, dropna=False, sort=False)[columns].mean().reset_index()


def latency_table(models: list[LatencyModel]) -> pd.DataFrame:
    """Coefficients in microseconds, and the errors on steps that were held out."""
    return pd.DataFrame(
        [
            {
                "variant": model.variant,
                "base_us": model.base_s * 1e6,
                "per_seq_us": model.per_seq_s * 1e6,
                "floor_us": model.floor_s * 1e6,
                "per_token_us": model.per_token_s * 1e6,
                "per_kv_token_us": model.per_kv_token_s * 1e6,
                "prefill_step_us": model.prefill_step_s * 1e6,
                "prefill_launch_us": model.prefill_launch_s * 1e6,
                "uncaptured_launch_us": model.uncaptured_launch_s * 1e6,
                **{f"heldout_{key}": error.value for key, error in model.heldout_error.items()},
                **_worst(model),
            }
            for model in models
        ]
    )


def _worst(model: LatencyModel) -> dict[str, float | str]:
    """The shape and load with the largest held-out error, where there are several."""
    if not model.heldout_by:
        return {}
    name = max(model.heldout_by, key=lambda shape: model.heldout_by[shape].value)
    return {"heldout_worst": model.heldout_by[name].value, "worst_shape": name}


def fleet_table(tuning: Tuning) -> pd.DataFrame:
    """The winner beside the baselines, on traffic that the search had not seen."""
    shown = tuning.table()[
        ["name", "gpu_hours", "cost_usd", "ttft_p99_s", "slo_attainment", "keeps_slo"]
    ]
    return shown.rename(
        columns={
            "name": "fleet",
            "gpu_hours": "gpu_hours_per_day",
            "cost_usd": "usd_per_day",
        }
    ).reset_index(drop=True)


def day_table(result: SimResult, plan: Plan) -> pd.DataFrame:
    """A simulated day as rows of metric, value, interval (and how much of it is the model's), limit."""
    limits = plan.slo.limits()
    return pd.DataFrame(
        [
            {
                "plan": plan.name,
                "metric": name,
                "value": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "of_model": result.of_model.get(name, float("nan")),
                "limit": limits.get(name, float("nan")),
            }
            for name, estimate in result.metrics.items()
        ]
    )
