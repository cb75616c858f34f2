"""The two pages of a bundle that people read: what it rests on, and what to do with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from serving.manifests.kubernetes import app_name, is_local
from serving.plan import Plan
from serving.values import Estimate

if TYPE_CHECKING:
    from workbench.export import Evidence

_POINT = ("output_tokens_per_s", "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "e2e_p99_s")
_FLEET = ("name", "gpu_hours", "cost_usd", "ttft_p99_s", "slo_attainment", "keeps_slo")


def evidence_page(plan: Plan, evidence: Evidence) -> str:
    """EVIDENCE.md: measured, fitted, simulated, predicted, each with its numbers."""
    versions = ", ".join(f"{name} {v}" for name, v in sorted(evidence.versions.items()))
    on = evidence.hardware or "hardware that was not recorded"
    points = [{"run": name, **summary} for name, summary in evidence.measurements.items()]
    sections = [
        f"# What {plan.name} rests on",
        f"Measured on {on}; versions: {versions or 'not recorded'}."
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


def readme(plan: Plan, image: str | None) -> str:
    """README.md: needs, deploy, roll back, remove, verify."""
    name = app_name(plan)
    pin = (
        ""
        if image
        else "Pin the vLLM image first: put its digest in place of IMAGE_DIGEST in"
        " kubernetes/kustomization.yaml. Until then no\npod can start. It is the one file that may"
        " differ from SHA256SUMS, by its image alone.\n\n"
    )
    weights = (
        f"the folder model/ on a volume that many nodes can read, claimed as `{name}`"
        if is_local(plan)
        else f"`{plan.variant.model}` is fetched at revision `{plan.variant.revision}`"
    )
    tolerance = plan.hpa is not None and "tolerance" in plan.hpa.model_dump_json(exclude_none=True)
    version = "1.35 (the autoscaler's tolerance)" if tolerance else "1.30 (the sleep before a stop)"
    return f"""# {plan.name}

A vLLM fleet of `{plan.variant.name}`, tuned and exported by the workbench. EVIDENCE.md says what it
rests on; plan.json is the plan; SHA256SUMS lists every file.

## Needs

- Kubernetes {version} or newer, with NVIDIA's device plugin.
- A Prometheus operator that takes ServiceMonitors and PrometheusRules of this namespace, and
  prometheus-adapter with monitoring/prometheus-adapter.yaml in its values: without it the autoscaler
  has no metric. A namespace `monitoring` for Prometheus.
- NVIDIA's DCGM exporter at its own interval of 30 s, scraped every 15 s with `honorLabels: true`, so that
  `pod` names the pod that holds the GPU.
- Weights: {weights}.
- A gateway whose pods have the label `app.kubernetes.io/component: gateway`; others are not let in.

## Deploy

{pin}    kubectl apply -k kubernetes/
    kubectl rollout status deployment/{name}

## Roll back, remove

    kubectl rollout undo deployment/{name}     # or apply the bundle before this one
    kubectl delete -k kubernetes/

## On one machine, and does the prediction hold?

    docker compose up            # VLLM_IMAGE and PROMETHEUS_IMAGE pinned by digest
    workbench verify --bundle .  # starts vLLM here, replays load, compares with prediction.json

serve.json holds the arguments of one replica without containers.
"""
