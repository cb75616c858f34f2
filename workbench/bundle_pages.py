"""The two pages of a bundle that people read: what it rests on, and what to do with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from serving.manifests import Images
from serving.manifests.autoscaling import keda_can
from serving.manifests.monitoring import MIN_SAMPLE, SCRAPE_INTERVAL
from serving.manifests.names import TRACKS, app_name, gateway_name, redis_name
from serving.manifests.templates import fill
from serving.manifests.vllm import is_local
from serving.plan import Plan
from serving.values import Estimate

if TYPE_CHECKING:
    from workbench.bundle_evidence import Evidence

_POINT = ("output_tokens_per_s", "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "e2e_p99_s")
_FLEET = ("name", "gpu_hours", "cost_usd", "ttft_p99_s", "slo_attainment", "keeps_slo")


def evidence_page(plan: Plan, evidence: Evidence) -> str:
    """EVIDENCE.md: measured, fitted, simulated, predicted, each with its numbers."""
    versions = ", ".join(f"{name} {v}" for name, v in sorted(evidence.versions.items()))
    on = evidence.hardware or "hardware that was not recorded"
    since = f", from {evidence.measured_at} on" if evidence.measured_at else ""
    points = [{"run": name, **summary} for name, summary in evidence.measurements.items()]
    sections = [
        f"# What {plan.name} rests on",
        f"Measured on {on}{since}; versions: {versions or 'not recorded'}."
        " Numbers in brackets are 95 % intervals.",
        *(f"**Rests on what cannot be trusted.** {why}" for why in evidence.prediction.doubts),
        f"## The model: {plan.variant.name}, made by {plan.variant.method}",
        _quality(plan),
        "## Measured",
        _table(("run", *_POINT), points),
        f"## Fitted (cold start {evidence.cold_start_s:.1f} s)",
        evidence.fit_source,
        _pairs("relative error on what was held out", evidence.fit_errors),
        "## Simulated: the winner's day, on traffic that the search had not seen",
        _pairs("metric", evidence.day),
        "## Beside other fleets, on the same day",
        _table(_FLEET, evidence.fleets),
        "## Predicted for one replica: what `workbench verify` must find",
        _pairs("metric", evidence.prediction.metrics),
        f"A median or a throughput holds within {evidence.prediction.tolerance_p50:.0%}, a P99"
        f" within {evidence.prediction.tolerance_p99:.0%}.",
        f"## MLflow runs\n\n{', '.join(evidence.mlflow_run_ids) or 'None.'}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _quality(plan: Plan) -> str:
    quality = plan.variant.quality
    if quality is None:
        return "Its quality was not judged."
    scores = {name: value for name, value in quality if isinstance(value, Estimate)}
    scores |= {f"benchmark {task}": score for task, score in quality.benchmarks.items()}
    allowed = plan.slo.max_quality_loss
    told = [
        _pairs("quality", scores),
        f"Judged through vLLM on {quality.judged_on}." if quality.judged_on else "",
        f"At most {allowed:.1%} of the score may be lost: {quality.verdict(allowed)}.",
        *plan.variant.notes,
    ]
    return "\n\n".join(part for part in told if part)


def _pairs(what: str, values: Mapping[str, Any]) -> str:
    return _table((what, "value"), [{what: name, "value": v} for name, v in values.items()])


def _table(columns: tuple[str, ...], rows: Iterable[Mapping[str, Any]]) -> str:
    lines = [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in rows]
    if not lines:
        return "None recorded."
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *lines])


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def readme(plan: Plan, pinned: Images) -> str:
    """README.md: needs, deploy, release, roll back, remove, verify."""
    return fill(
        "README.md",
        {
            "plan": plan.name,
            "variant": plan.variant.name,
            "app": app_name(plan),
            "gateway": gateway_name(plan),
            "redis": redis_name(plan),
            "kubernetes": _kubernetes(plan),
            "weights": _weights(plan),
            "still_open": _still_open(pinned),
            "min_sample": MIN_SAMPLE,
            "scrape_interval": SCRAPE_INTERVAL,
            "delete_blue": _delete(plan, "blue"),
            "remove": _remove(plan),
            "alternatives": _alternatives(plan),
        },
    )


def _kubernetes(plan: Plan) -> str:
    tolerance = plan.hpa is not None and "tolerance" in plan.hpa.model_dump_json(exclude_none=True)
    return "1.35 (the autoscaler's tolerance)" if tolerance else "1.30 (the sleep before a stop)"


def _weights(plan: Plan) -> str:
    if is_local(plan):
        return (
            f"the folder model/ on a volume that many nodes can read, claimed as `{app_name(plan)}`"
        )
    return f"`{plan.variant.model}` is fetched at revision `{plan.variant.revision}`"


def _still_open(pinned: Images) -> str:
    missing = [name for name in ("vllm", "gateway", "redis") if getattr(pinned, name) is None]
    return f": {', '.join(missing)} still say IMAGE_DIGEST, and no pod can start" if missing else ""


def _delete(plan: Plan, track: str) -> str:
    kinds = "deployment,service,hpa,pdb,servicemonitor"
    part = f"app.kubernetes.io/part-of={plan.name},app.kubernetes.io/track={track}"
    return f"kubectl delete {kinds} -l {part}"


def _remove(plan: Plan) -> str:
    others = ", ".join(track for track in TRACKS if track != "stable")
    return f"    {_delete(plan, 'TRACK')}\n\nTRACK is any of {others}, where it was applied.\n"


def _alternatives(plan: Plan) -> str:
    """What stands in alternatives/, none of which was simulated."""
    said = [
        "**Argo Rollouts** (alternatives/argo-rollouts, in place of overlays/stable): 1 % by a Gateway"
        " API route between gateway and replicas, and an AnalysisTemplate that holds without data. Name"
        " your namespace in rollout.yaml.",
        "**Gateway API** (alternatives/gateway-api, beside overlays/stable): a second gateway for the"
        " canary, and an HTTPRoute of 99 to 1. Name your Gateway in route.yaml.",
    ]
    if keda_can(plan):
        said.append(
            "**KEDA** (alternatives/keda, in place of overlays/stable): a ScaledObject with the same"
            " queries, targets and behaviour as the HPA, in place of prometheus-adapter."
        )
    listed = "\n".join(f"- {one}" for one in said)
    head = "Instead of the gateway's own canary, or of the adapter; none of it was simulated:"
    return f"{head}\n\n{listed}\n"
