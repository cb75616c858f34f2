"""Grafana's dashboard: the article's table of what is watched, and the rollout."""

from __future__ import annotations

from typing import Any

from serving.manifests.names import app_name, gateway_name, pods_of
from serving.plan import Plan

Object = dict[str, Any]
_WIDTH, _HEIGHT, _COLUMNS = 12, 8, 2
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard(plan: Plan) -> Object:
    """The dashboard; its data source is chosen in Grafana."""
    return {
        "uid": app_name(plan)[:40],
        "title": f"{plan.name}: chat service",
        "tags": ["llm", "vllm"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {},
                }
            ]
        },
        "annotations": {"list": []},
        "panels": [
            _panel(i, title, unit, queries)
            for i, (title, unit, queries) in enumerate(_panels(plan))
        ],
    }


def queries(found: Object) -> list[str]:
    """All that a dashboard asks Prometheus."""
    return [target["expr"] for panel in found["panels"] for target in panel["targets"]]


def _panels(plan: Plan) -> list[tuple[str, str, dict[str, str]]]:
    """Title, unit and queries by legend of each panel."""
    pods, way = pods_of(plan), f'service=~"{gateway_name(plan)}.*"'
    fleet = f'horizontalpodautoscaler="{app_name(plan)}"'
    asked = f"sum(rate(gateway_requests_total{{{way}}}[5m]))"
    used, free = f"DCGM_FI_DEV_FB_USED{{{pods}}}", f"DCGM_FI_DEV_FB_FREE{{{pods}}}"
    return [
        ("Latency of whole answers", "s", _latency("gateway_request_duration_seconds", way)),
        (
            "Time to first token",
            "s",
            _latency("gateway_time_to_first_token_seconds", way)
            | {"P99 at vLLM": _quantile("vllm:time_to_first_token_seconds", pods)},
        ),
        (
            "Errors and time-outs",
            "percentunit",
            {
                "errors": f'sum(rate(gateway_requests_total{{{way},status=~"5.."}}[5m])) / {asked}',
                "time-outs": f"sum(rate(gateway_timeouts_total{{{way}}}[5m])) / {asked}",
                "given up": f"sum(rate(gateway_aborted_total{{{way}}}[5m])) / {asked}",
            },
        ),
        (
            "Request volume",
            "reqps",
            {"{{track}}": f"sum(rate(gateway_requests_total{{{way}}}[5m])) by (track)"},
        ),
        (
            "GPU utilisation (busy with anything)",
            "percent",
            {"{{pod}}": f"avg(DCGM_FI_DEV_GPU_UTIL{{{pods}}}) by (pod)"},
        ),
        (
            "GPU memory and KV cache",
            "percentunit",
            {
                "memory {{pod}}": f"avg({used} / ({used} + {free})) by (pod)",
                "KV cache {{pod}}": f"avg(vllm:kv_cache_usage_perc{{{pods}}}) by (pod)",
            },
        ),
        (
            "Queue",
            "short",
            {
                "waiting": f"sum(vllm:num_requests_waiting{{{pods}}})",
                "running": f"sum(vllm:num_requests_running{{{pods}}})",
                "at the gateway": f"sum(gateway_requests_in_flight{{{way}}})",
            },
        ),
        (
            "Replicas",
            "short",
            {
                "wanted": f"max(kube_horizontalpodautoscaler_status_desired_replicas{{{fleet}}})",
                "at most": f"max(kube_horizontalpodautoscaler_spec_max_replicas{{{fleet}}})",
                "{{track}} at the gateway": f"max(gateway_replicas_up{{{way}}}) by (track)",
            },
        ),
        (
            "Cache hits",
            "percentunit",
            {
                "answers": _share("gateway_answer_cache_total", 'result="hit"', way),
                "conversations": _share("gateway_context_total", 'result="found"', way),
                "prefixes in vLLM": f"sum(rate(vllm:prefix_cache_hits_total{{{pods}}}[5m]))"
                f" / sum(rate(vllm:prefix_cache_queries_total{{{pods}}}[5m]))",
            },
        ),
        (
            "Returning users (of sessions begun in a day)",
            "percentunit",
            {"returning": _share("gateway_sessions_total", 'user="returning"', way, "1d")},
        ),
        (
            "Tokens",
            "short",
            {
                "prompt": f"sum(rate(vllm:prompt_tokens_total{{{pods}}}[5m]))",
                "output": f"sum(rate(vllm:generation_tokens_total{{{pods}}}[5m]))",
                "preemptions": f"sum(rate(vllm:num_preemptions_total{{{pods}}}[5m]))",
            },
        ),
        (
            "Rollout",
            "percentunit",
            {
                "share of {{track}}": f"max(gateway_rollout_share{{{way}}}) by (track)",
                "errors of {{track}}": f'sum(rate(gateway_requests_total{{{way},status=~"5.."}}'
                "[5m])) by (track)"
                f" / sum(rate(gateway_requests_total{{{way}}}[5m])) by (track)",
            },
        ),
    ]


def _latency(histogram: str, scope: str) -> dict[str, str]:
    mean = " / ".join(f"sum(rate({histogram}_{part}{{{scope}}}[5m]))" for part in ("sum", "count"))
    return {"mean": mean, "P99": _quantile(histogram, scope)}


def _quantile(histogram: str, scope: str) -> str:
    return f"histogram_quantile(0.99, sum(rate({histogram}_bucket{{{scope}}}[5m])) by (le))"


def _share(name: str, of: str, scope: str, window: str = "5m") -> str:
    part, whole = (
        f"sum(increase({name}{{{matchers}}}[{window}]))" for matchers in (f"{scope},{of}", scope)
    )
    return f"{part} / {whole}"


def _panel(i: int, title: str, unit: str, asked: dict[str, str]) -> Object:
    return {
        "id": i + 1,
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "gridPos": {
            "x": _WIDTH * (i % _COLUMNS),
            "y": _HEIGHT * (i // _COLUMNS),
            "w": _WIDTH,
            "h": _HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(65 + n), "datasource": _SOURCE, "expr": expr, "legendFormat": legend}
            for n, (legend, expr) in enumerate(asked.items())
        ],
    }
