"""What is watched: rules that promtool takes and tries, queries of metrics that exist, pages to go by."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.alerts import ALERTS
from serving.gateway.metrics import Metrics
from serving.manifests import render
from serving.manifests.alert_cases import cases, latency, promtool_tests
from serving.manifests.dashboard import queries
from serving.manifests.monitoring import MIN_SAMPLE, canary_errors, canary_ttft
from serving.manifests.names import pods_of
from tests.serving.plans import plan

from .bundles import write

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed"
)
FILES = render(plan())
PODS = [f'pod="vllm-winner{track}-5d4f-x1y2z"' for track in ("", "-canary", "-blue", "-green")]


def promtool(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_the_exported_rules_pass_their_own_tests(tmp_path: Path) -> None:
    folder = write(FILES, tmp_path) / "monitoring"
    assert "7 rules found" in promtool("check", "rules", "rules.yml", cwd=folder)
    promtool("check", "config", "prometheus.yml", cwd=folder)
    promtool("test", "rules", "rules_test.yml", cwd=folder)


@needs_promtool
@pytest.mark.parametrize("alert", [alert.name for alert in ALERTS])
def test_each_alert_is_tried_both_ways(alert: str, tmp_path: Path) -> None:
    folder = write(FILES, tmp_path) / "monitoring"
    found = yaml.safe_load((folder / "rules.yml").read_text())
    (rule,) = (one for one in found["groups"][0]["rules"] if one["alert"] == alert)
    # A rule that always fires and one that never does are both found out.
    for expression in ("vector(1)", "vector(1) > 2"):
        rule["expr"] = expression
        (folder / "rules.yml").write_text(yaml.safe_dump(found))
        done = subprocess.run(
            ["promtool", "test", "rules", "rules_test.yml"], cwd=folder, capture_output=True
        )
        assert done.returncode != 0, expression


@needs_promtool
@pytest.mark.parametrize("pod", PODS)
def test_the_cluster_s_rules_see_every_track_and_no_other_plan(pod: str, tmp_path: Path) -> None:
    spec = yaml.safe_load(FILES["base/monitoring/prometheus-rule.yaml"])["spec"]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(spec))
    other = 'pod="vllm-other-5d4f-x1y2z"'
    tried = cases(pod) | {
        "slow elsewhere": ([*latency(0, 0.2, pod), *latency(0.9, 0.6, other)], set())
    }
    tests = promtool_tests("rules.yml", pods_of(plan()), tried)
    (tmp_path / "test.yml").write_text(yaml.safe_dump(tests))
    promtool("test", "rules", "test.yml", cwd=tmp_path)


def test_every_alert_has_its_page_and_every_page_its_alert() -> None:
    pages = {path for path in FILES if path.startswith("runbooks/")}
    rules = yaml.safe_load(FILES["monitoring/rules.yml"])["groups"][0]["rules"]
    assert {rule["annotations"]["runbook"] for rule in rules} == pages
    for page in pages:
        assert FILES[page].startswith(f"# {Path(page).stem}\n")
        assert "## Look" in FILES[page]
        assert "## Do" in FILES[page]
        assert "@{" not in FILES[page]


# -- queries -----------------------------------------------------------------------------------


def known_metrics() -> set[str]:
    """Names that the gateway exports, as Prometheus stores them."""
    found = set()
    for family in Metrics().registry.collect():
        if family.type == "counter":
            found.add(f"{family.name}_total")
        elif family.type == "histogram":
            found |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
        else:
            found.add(family.name)
    return found


def vllm_metrics() -> str:
    """The source of vLLM's metrics, without importing it."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vllm is not installed")
    return (Path(spec.origin).parent / "v1" / "metrics" / "loggers.py").read_text()


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = json.loads(FILES["base/monitoring/dashboard.json"])
    asked = " ".join(queries(dashboard))
    ours = set(re.findall(r"\bgateway_[a-z_]+", asked))
    assert len(ours) > 10
    assert ours <= known_metrics()
    source = vllm_metrics()
    theirs = set(re.findall(r"\bvllm:[a-z_]+", asked))
    assert len(theirs) > 5
    for name in theirs:
        stem = re.sub(r"_(total|bucket|sum|count)$", "", name)
        assert stem in source, name


def test_the_dashboard_has_the_article_s_table_and_a_data_source_to_choose() -> None:
    dashboard = json.loads(FILES["base/monitoring/dashboard.json"])
    titles = " ".join(panel["title"] for panel in dashboard["panels"])
    for word in (
        *("Latency", "first token", "Errors and time-outs", "volume", "GPU utilisation"),
        *("memory", "Queue", "Replicas", "Cache hits", "Returning users"),
    ):
        assert word in titles
    (variable,) = dashboard["templating"]["list"]
    assert variable["type"] == "datasource"
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == f"${{{variable['name']}}}"
        ids = [target["refId"] for target in panel["targets"]]
        assert len(ids) == len(set(ids))
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in dashboard["panels"]]
    assert len(places) == len(set(places))


@needs_promtool
def test_prometheus_reads_every_query(tmp_path: Path) -> None:
    scaled = yaml.safe_load(FILES["alternatives/keda/scaled-object.yaml"])["spec"]["triggers"]
    asked = [
        *queries(json.loads(FILES["base/monitoring/dashboard.json"])),
        *(trigger["metadata"]["query"] for trigger in scaled),
        canary_errors('pod="x"'),
        canary_ttft('pod="x"'),
    ]
    rules = [{"record": f"query:{i}", "expr": text} for i, text in enumerate(asked)]
    groups = {"groups": [{"name": "queries", "rules": rules}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(groups))
    promtool("check", "rules", "rules.yml", cwd=tmp_path)


@needs_promtool
@pytest.mark.parametrize(
    ("good", "bad", "share"),
    [(MIN_SAMPLE - 20, 10, None), (2 * MIN_SAMPLE, 0, 0.0), (490, 10, 0.02), (0, 0, None)],
)
def test_a_canary_is_judged_on_enough_requests_only(
    good: int, bad: int, share: float | None, tmp_path: Path
) -> None:
    """What Argo's analysis asks: nothing below the least sample."""
    pod = 'pod="vllm-winner-abc-x1"'

    def answers(status: str, n: int) -> dict[str, str]:
        labels = f'{pod},handler="/v1/chat/completions",status="{status}"'
        return {"series": f"http_requests_total{{{labels}}}", "values": f"0x5 {n}x60"}

    expected = [] if share is None else [{"labels": "{}", "value": share}]
    case = {
        "interval": "1m",
        "input_series": [answers("2xx", good), answers("5xx", bad)],
        "promql_expr_test": [
            {"expr": canary_errors(pod), "eval_time": "20m", "exp_samples": expected}
        ],
    }
    (tmp_path / "rules.yml").write_text("groups: []\n")
    tests: dict[str, Any] = {"rule_files": ["rules.yml"], "tests": [case]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(tests))
    promtool("test", "rules", "test.yml", cwd=tmp_path)


def test_without_data_argo_holds() -> None:
    """An empty answer must neither pass nor fail what decides."""
    metrics = {
        one["name"]: one
        for one in yaml.safe_load(FILES["alternatives/argo-rollouts/analysis-template.yaml"])[
            "spec"
        ]["metrics"]
    }
    for name in ("decides", "first-token"):
        decides = metrics[name]
        # Neither condition holds of an empty answer: inconclusive, of which none is allowed.
        assert decides["successCondition"].startswith("len(result) > 0 && ")
        assert decides["failureCondition"].startswith("len(result) > 0 && ")
        assert (decides["count"], decides["inconclusiveLimit"]) == (1, 0)
        assert f">= {MIN_SAMPLE}" in decides["provider"]["prometheus"]["query"]
    assert metrics["fails"]["failureLimit"] == 0
    assert "args.canary-hash" in metrics["fails"]["provider"]["prometheus"]["query"]


def test_the_logs_go_where_the_environment_says() -> None:
    found = yaml.safe_load(FILES["logs/filebeat.yml"])
    assert found["output.elasticsearch"]["hosts"] == ["${ELASTICSEARCH_URL}"]
    assert found["output.elasticsearch"]["api_key"] == "${ELASTICSEARCH_API_KEY}"
    gateway, vllm = found["filebeat.inputs"]
    assert gateway["paths"] == ["/var/log/containers/gateway-winner-*.log"]
    assert vllm["paths"] == ["/var/log/containers/vllm-winner-*.log"]
    assert [next(iter(parser)) for parser in gateway["parsers"]] == ["container", "ndjson"]
