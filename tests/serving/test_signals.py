"""The adapter's mean TTFT under promtool; the alerts are tried in manifests/."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from serving.hpa import TTFT_MEAN
from serving.promql import text
from serving.signals import SIGNALS

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed"
)
POD = 'pod="vllm-winner-5d4f-x1y2z"'
TTFT = "vllm:time_to_first_token_seconds"


def test_the_mean_ttft_is_per_pod_and_absent_where_nothing_came(tmp_path: Path) -> None:
    idle = 'pod="vllm-winner-5d4f-idle0"'
    busy = [
        {"series": f"{TTFT}_{part}{{{POD}}}", "values": f"0+{step}x80"}
        for part, step in (("sum", 5), ("count", 10))
    ]
    still = [
        {"series": f"{TTFT}_{part}{{{idle}}}", "values": "7+0x80"} for part in ("sum", "count")
    ]
    case = {
        "interval": "15s",
        "input_series": [*busy, *still],
        "promql_expr_test": [
            {
                "expr": text(SIGNALS[TTFT_MEAN].per_pod),
                "eval_time": "20m",
                "exp_samples": [{"labels": f"{{{POD}}}", "value": 0.5}],
            }
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump({"rule_files": [], "tests": [case]}))
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
