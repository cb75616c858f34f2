"""Alert rules under promtool: each fires on what it is for and on nothing else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.hpa import TTFT_MEAN
from serving.manifests import render
from serving.promql import text
from serving.signals import SIGNALS

from .plans import plan

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed"
)
POD = 'pod="vllm-winner-5d4f-x1y2z"'
TTFT = "vllm:time_to_first_token_seconds"
FIRED_AT = "20m"


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def counter(name: str, per_minute: float, labels: str = POD, then: float | None = None) -> Any:
    """Twenty minutes of a counter; with `then`, at another rate for the last two."""
    if then is None:
        values = f"0+{per_minute}x20"
    else:
        values = f"0+{per_minute}x18 {18 * per_minute + then}+{then}x1"
    return {"series": f"{name}{{{labels}}}", "values": values}


def gauge(name: str, value: float, minutes: int = 20, labels: str = POD) -> Any:
    """A gauge that is 0 until its last minutes."""
    return {"series": f"{name}{{{labels}}}", "values": f"0x{20 - minutes} {value}x{minutes - 1}"}


def latency(slow_share: float, mean_s: float, labels: str = POD) -> list[Any]:
    """600 first tokens a minute, a share of them between 0.5 and 1 s."""
    return [
        counter(f"{TTFT}_sum", 600 * mean_s, labels),
        counter(f"{TTFT}_count", 600, labels),
        *(
            counter(f"{TTFT}_bucket", n, f'{labels},le="{le}"')
            for le, n in (("0.25", 0), ("0.5", 600 * (1 - slow_share)), ("1", 600), ("+Inf", 600))
        ),
    ]


def finished(reason: str, per_minute: float, then: float | None = None, labels: str = POD) -> Any:
    name = "vllm:request_success_total"
    return counter(name, per_minute, f'{labels},finished_reason="{reason}"', then)


def answers(status: str, per_minute: float) -> Any:
    labels = f'{POD},handler="/v1/chat/completions",status="{status}"'
    return counter("http_requests_total", per_minute, labels)


def memory(share: float, kv_usage: float, minutes: int = 20) -> list[Any]:
    return [
        gauge("DCGM_FI_DEV_FB_USED", 1000 * share, minutes),
        gauge("DCGM_FI_DEV_FB_FREE", 1000 * (1 - share), minutes),
        gauge("vllm:kv_cache_usage_perc", kv_usage, minutes),
    ]


OTHER = 'pod="vllm-other-5d4f-x1y2z"'
CASES: dict[str, tuple[list[Any], set[str]]] = {
    "quiet": (
        [
            *latency(0.005, 0.2),
            *memory(0.92, 0.5),
            gauge("DCGM_FI_DEV_GPU_UTIL", 80),
            finished("stop", 597),
            finished("error", 3),
            answers("2xx", 597),
            answers("5xx", 3),
        ],
        set(),
    ),
    "nothing at all": ([], set()),
    "idle": (
        [
            counter(f"{TTFT}_sum", 0),
            counter(f"{TTFT}_count", 0),
            finished("stop", 0),
            answers("2xx", 0),
        ],
        set(),
    ),
    "slow tail": (latency(0.02, 0.3), {"LatencyP99High"}),
    "slow": (latency(0.9, 0.6), {"LatencyMeanHigh", "LatencyP99High"}),
    "slow elsewhere": ([*latency(0, 0.2), *latency(0.9, 0.6, OTHER)], set()),
    "busy": ([gauge("DCGM_FI_DEV_GPU_UTIL", 90, 7)], {"GpuUtilisationHigh"}),
    "busy for a moment": ([gauge("DCGM_FI_DEV_GPU_UTIL", 90, 4)], set()),
    "memory and cache full": (memory(0.92, 0.9, 7), {"GpuMemoryHigh"}),
    "cache full for a moment": (memory(0.92, 0.9, 4), set()),
    "aborted": ([finished("stop", 580), finished("abort", 20)], {"TimeoutRateHigh"}),
    "refused": (
        [answers("2xx", 580), answers("5xx", 20), finished("stop", 580)],
        {"ErrorRateHigh"},
    ),
    "broken streams": ([finished("stop", 580), finished("error", 20)], {"ErrorRateHigh"}),
    "bad requests": ([answers("2xx", 500), answers("4xx", 100)], set()),
    "stopped": ([finished("stop", 600, then=0)], {"RequestVolumeFell"}),
    "a little less": ([finished("stop", 600, then=500)], set()),
}


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rules of the Kubernetes object, as a file."""
    path = tmp_path_factory.mktemp("rules") / "rules.yml"
    found = yaml.safe_load(render(plan())["kubernetes/prometheus-rules.yaml"])
    path.write_text(yaml.safe_dump(found["spec"]))
    return path


def test_both_forms_of_the_rules_are_accepted(rules: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(render(plan())["monitoring/rules.yml"])
    (tmp_path / "prometheus.yml").write_text(render(plan())["monitoring/prometheus.yml"])
    assert "7 rules found" in promtool("check", "rules", str(rules))
    assert "7 rules found" in promtool("check", "config", str(tmp_path / "prometheus.yml"))


@pytest.mark.parametrize("name", CASES)
def test_alerts_fire_on_what_they_are_for(name: str, rules: Path, tmp_path: Path) -> None:
    series, expected = CASES[name]
    groups = yaml.safe_load(rules.read_text())["groups"]
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    assert expected <= {alert["alert"] for alert in alerts}
    tests = [
        {
            "eval_time": FIRED_AT,
            "alertname": alert["alert"],
            "exp_alerts": [{"exp_labels": alert["labels"], "exp_annotations": alert["annotations"]}]
            if alert["alert"] in expected
            else [],
        }
        for alert in alerts
    ]
    case = {"interval": "1m", "input_series": series, "alert_rule_test": tests}
    _run(rules, case, tmp_path)


def test_the_mean_ttft_is_per_pod_and_absent_where_nothing_came(
    rules: Path, tmp_path: Path
) -> None:
    idle = 'pod="vllm-winner-5d4f-idle0"'
    busy = [
        {"series": f"{TTFT}_{part}{{{POD}}}", "values": f"0+{step}x80"}
        for part, step in (("sum", 5), ("count", 10))
    ]
    still = [
        {"series": f"{TTFT}_{part}{{{idle}}}", "values": "7+0x80"} for part in ("sum", "count")
    ]
    expected = [{"labels": f"{{{POD}}}", "value": 0.5}]
    case = {
        "interval": "15s",
        "input_series": [*busy, *still],
        "promql_expr_test": [
            {
                "expr": text(SIGNALS[TTFT_MEAN].per_pod),
                "eval_time": "20m",
                "exp_samples": expected,
            }
        ],
    }
    _run(rules, case, tmp_path)


def _run(rules: Path, case: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "test.yml"
    content = {"rule_files": [str(rules)], "evaluation_interval": "15s", "tests": [case]}
    path.write_text(yaml.safe_dump(content))
    promtool("test", "rules", str(path))
