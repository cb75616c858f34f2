"""What the decision takes for granted: the first thing to look at where it surprises."""

from __future__ import annotations

from collections.abc import Iterator

from simulations.latency import LatencyModel
from simulations.traffic import Workload
from workbench.report.data import ReportData
from workbench.report.fleet_figures import METRIC_NAMES
from workbench.report.words import seconds


def assumptions(data: ReportData) -> Iterator[tuple[str, str]]:
    """Pairs of what is assumed and in which words, taken from the results."""
    slo = data.limits
    if slo is not None:
        kept = [f"{METRIC_NAMES[name]} within {seconds(at)}" for name, at in slo.limits().items()]
        yield (
            "the promise",
            f"{', '.join(kept)}; at most {100 * slo.max_quality_loss:g} % of quality lost",
        )
    if data.tuning is not None:
        plan, seeds = data.tuning.winner, len(data.tuning.winner_result.per_seed)
        yield "the traffic", _lengths(data.tuning.prediction.workload)
        yield (
            "the day",
            f"as declared, drawn {seeds} times; the intervals are over these draws only",
        )
        yield (
            "the price",
            f"{plan.gpu_usd_per_hour:g} USD per GPU hour, {plan.gpus_per_replica} GPU per replica",
        )
    for model in data.latency_models:
        yield f"{model.variant}: a step", _range(model)
        start = model.cold_start
        yield (
            f"{model.variant}: a new replica",
            f"ready after {seconds(start.total_s)} ({start.source})",
        )
    hardware = sorted({m.environment.hardware for m in data.measurements})
    if hardware:
        yield "the hardware", f"holds for {' and '.join(hardware)}, as measured; for no other"
    yield (
        "left out",
        "the network between users and gateway, node failures, other tenants of the same GPU,"
        " and models that answer differently under load",
    )


def _lengths(workload: Workload) -> str:
    """Mean prompt and answer as drawn, not as declared: a law's cut-off moves its mean."""
    drawn = workload.schedule()
    return (
        f"prompts of {drawn.prompt_tokens.mean():.0f} and answers of"
        f" {drawn.output_tokens.mean():.0f} tokens on average, of the busy hour"
    )


def _range(model: LatencyModel) -> str:
    limits = model.fitted_range
    how = "assumed from a data sheet" if model.assumed else "fitted"
    return (
        f"{how} up to {limits.decode_seqs:,} sequences, {limits.prefill_tokens:,} prompt tokens"
        f" a step and {limits.kv_tokens:,} tokens in the cache"
    )
