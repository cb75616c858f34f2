"""What each alert fires on, and what it does not fire on: promtool's unit tests of the rules.

Twenty minutes of samples, a minute apart; at their end exactly the named alerts fire.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.alerts import ALERTS
from serving.manifests.monitoring import rule

_TTFT = "vllm:time_to_first_token_seconds"
_FIRED_AT = "20m"
Case = tuple[list[dict[str, str]], set[str]]
"""Series, and the alerts that fire on them."""


def counter(name: str, labels: str, per_minute: float, then: float | None = None) -> dict[str, str]:
    """Twenty minutes of a counter; with `then`, at another rate for the last two."""
    values = f"0+{per_minute}x20"
    if then is not None:
        values = f"0+{per_minute}x18 {18 * per_minute + then}+{then}x1"
    return {"series": f"{name}{{{labels}}}", "values": values}


def gauge(name: str, labels: str, value: float, minutes: int = 20) -> dict[str, str]:
    """A gauge that is 0 until its last minutes."""
    return {"series": f"{name}{{{labels}}}", "values": f"0x{20 - minutes} {value}x{minutes - 1}"}


def latency(slow_share: float, mean_s: float, labels: str) -> list[dict[str, str]]:
    """600 first tokens a minute, a share of them between 0.5 and 1 s."""
    buckets = {"0.25": 0.0, "0.5": 600 * (1 - slow_share), "1": 600.0, "+Inf": 600.0}
    return [
        counter(f"{_TTFT}_sum", labels, 600 * mean_s),
        counter(f"{_TTFT}_count", labels, 600),
        *(counter(f"{_TTFT}_bucket", f'{labels},le="{le}"', n) for le, n in buckets.items()),
    ]


def cases(pod: str) -> dict[str, Case]:
    """By name; `pod` holds the labels of one replica."""

    def finished(reason: str, per_minute: float, then: float | None = None) -> dict[str, str]:
        labels = f'{pod},finished_reason="{reason}"'
        return counter("vllm:request_success_total", labels, per_minute, then)

    def answers(status: str, per_minute: float) -> dict[str, str]:
        labels = f'{pod},handler="/v1/chat/completions",status="{status}"'
        return counter("http_requests_total", labels, per_minute)

    def memory(share: float, kv_usage: float, minutes: int = 20) -> list[dict[str, str]]:
        return [
            gauge("DCGM_FI_DEV_FB_USED", pod, 1000 * share, minutes),
            gauge("DCGM_FI_DEV_FB_FREE", pod, 1000 * (1 - share), minutes),
            gauge("vllm:kv_cache_usage_perc", pod, kv_usage, minutes),
        ]

    def busy(percent: float, minutes: int = 20) -> dict[str, str]:
        return gauge("DCGM_FI_DEV_GPU_UTIL", pod, percent, minutes)

    quiet = [
        *(*latency(0.005, 0.2, pod), *memory(0.92, 0.5), busy(80)),
        *(finished("stop", 597), finished("error", 3), answers("2xx", 597), answers("5xx", 3)),
    ]
    idle = [
        *(counter(f"{_TTFT}_sum", pod, 0), counter(f"{_TTFT}_count", pod, 0)),
        *(finished("stop", 0), answers("2xx", 0)),
    ]
    return {
        "quiet": (quiet, set()),
        "nothing at all": ([], set()),
        "idle": (idle, set()),
        "slow tail": (latency(0.02, 0.3, pod), {"LatencyP99High"}),
        "slow": (latency(0.9, 0.6, pod), {"LatencyMeanHigh", "LatencyP99High"}),
        "busy": ([busy(90, 7)], {"GpuUtilisationHigh"}),
        "busy for a moment": ([busy(90, 4)], set()),
        "memory and cache full": (memory(0.92, 0.9, 7), {"GpuMemoryHigh"}),
        "memory full, as always": (memory(0.92, 0.5), set()),
        "cache full for a moment": (memory(0.92, 0.9, 4), set()),
        "aborted": ([finished("stop", 580), finished("abort", 20)], {"TimeoutRateHigh"}),
        "a few aborted": ([finished("stop", 597), finished("abort", 3)], set()),
        "refused": (
            [answers("2xx", 580), answers("5xx", 20), finished("stop", 580)],
            {"ErrorRateHigh"},
        ),
        "broken streams": ([finished("stop", 580), finished("error", 20)], {"ErrorRateHigh"}),
        "bad requests": ([answers("2xx", 500), answers("4xx", 100)], set()),
        "stopped": ([finished("stop", 600, then=0)], {"RequestVolumeFell"}),
        "a little less": ([finished("stop", 600, then=500)], set()),
    }


def promtool_tests(rule_file: str, scope: str, found: Mapping[str, Case]) -> dict[str, Any]:
    """A file for `promtool test rules`."""
    return {
        "rule_files": [rule_file],
        "evaluation_interval": "1m",
        "tests": [_test(name, *case, scope) for name, case in found.items()],
    }


def _test(name: str, series: list[dict[str, str]], fire: set[str], scope: str) -> dict[str, Any]:
    rules = [rule(alert, scope) for alert in ALERTS]
    return {
        "name": name,
        "interval": "1m",
        "input_series": series,
        "alert_rule_test": [
            {
                "eval_time": _FIRED_AT,
                "alertname": one["alert"],
                "exp_alerts": [{"exp_labels": one["labels"], "exp_annotations": one["annotations"]}]
                if one["alert"] in fire
                else [],
            }
            for one in rules
        ],
    }
