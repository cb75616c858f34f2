from __future__ import annotations

import json
import re
import subprocess
import sys
from math import isnan, nan
from pathlib import Path

import numpy as np
import pytest

from serving.errors import InputError
from serving.plan import Slo, Variant
from simulations.traffic import Fixed, Poisson, Workload
from workbench.measure import Environment, Measurement, Measurements, ReplicaInfo, frame
from workbench.measure.engine import Outcome, Step, requests_frame, steps_frame
from workbench.measure.roofline import Ceilings

from .support import ENGINE

WORKLOAD = Workload(
    arrivals=Poisson(rate_rps=2),
    prompt_tokens=Fixed(tokens=10),
    output_tokens=Fixed(tokens=3),
    duration_s=10,
    warmup_s=1,
)


def outcome(
    i: int, scheduled_s: float, ttft_s: float, gaps_s: list[float], **more: object
) -> Outcome:
    sent_s = scheduled_s + 0.001
    made = Outcome(i, scheduled_s, 10, len(gaps_s) + 1, sent_s=sent_s)
    made.chunk(sent_s + ttft_s)
    for gap_s in gaps_s:
        made.chunk(made.end_s + gap_s)
    made.output_tokens = len(gaps_s) + 1
    for name, value in more.items():
        setattr(made, name, value)
    return made


def measurement(outcomes: list[Outcome], name: str = "point") -> Measurement:
    requests = requests_frame(outcomes)
    return Measurement(
        name=name,
        mode="server",
        variant=Variant(name="v", model="m"),
        engine=ENGINE,
        workload=WORKLOAD,
        requests=requests.assign(counted=requests["scheduled_s"] >= 1),
        steps=steps_frame([Step(1.2, 0.1, nan, 1, 10, 0, 10, 1, 0)]),
        replica=ReplicaInfo(engine_version="x", kv_blocks=9, block_size_tokens=16, start_s=30),
        environment=Environment.capture(),
        invalid=("a reason",),
    )


@pytest.fixture
def measured() -> Measurement:
    return measurement(
        [
            outcome(0, 0.5, 9.0, [9.0, 9.0]),  # within the warm-up: not counted
            outcome(1, 1.0, 0.1, [0.02, 0.04]),
            outcome(2, 2.0, 0.3, []),
            outcome(3, 2.5, 5.0, [5.0], error="HTTP 500"),
            outcome(4, 3.0, 0.2, [0.03, 0.03]),
        ]
    )


def test_definitions_by_hand(measured: Measurement) -> None:
    found = measured.summary(Slo(ttft_p99_s=0.25, tpot_p99_s=0.031))
    end_s = 3.0 + 0.001 + 0.2 + 0.06
    assert found["requests"] == 3
    assert found["errors"] == 1
    assert found["duration_s"] == pytest.approx(end_s - 1.0)
    assert found["output_tokens_per_s"] == pytest.approx(7 / (end_s - 1))
    assert found["total_tokens_per_s"] == pytest.approx(37 / (end_s - 1))
    assert found["ttft_p50_s"] == pytest.approx(0.2)
    assert found["ttft_p99_s"] == pytest.approx(np.percentile([0.1, 0.2, 0.3], 99))
    assert found["tpot_mean_s"] == pytest.approx(0.03)  # the single token has none
    assert found["itl_mean_s"] == pytest.approx((0.02 + 0.04 + 0.03 + 0.03) / 4)
    assert found["e2e_p50_s"] == pytest.approx(0.26)
    assert found["send_lateness_p99_s"] == pytest.approx(0.001)
    # 1 and 4 keep both limits; 2 misses TTFT.
    assert found["goodput_rps"] == pytest.approx(2 / (end_s - 1), rel=1e-6)


def test_latency_from_the_schedule_includes_the_wait_to_be_sent(measured: Measurement) -> None:
    table = measured.latencies()
    assert np.allclose(table["ttft_from_schedule_s"], table["ttft_s"] + 0.001)
    assert np.allclose(table["e2e_from_schedule_s"], table["e2e_s"] + 0.001)


def test_nothing_answered_is_not_a_number_and_no_crash() -> None:
    found = measurement([outcome(1, 1.0, 0.1, [], error="x")]).summary(Slo())
    assert found["requests"] == 0
    assert found["errors"] == 1
    assert isnan(found["ttft_p99_s"])
    assert isnan(found["output_tokens_per_s"])


def test_written_and_read_it_is_the_same(measured: Measurement, tmp_path: Path) -> None:
    there = Measurement.read(measured.write(tmp_path / "point"))
    assert there.summary(Slo()) == measured.summary(Slo())
    assert there.requests.equals(measured.requests)
    assert there.steps.equals(measured.steps)
    assert (there.variant, there.engine, there.workload) == (
        measured.variant,
        measured.engine,
        measured.workload,
    )
    assert there.environment == measured.environment
    assert there.invalid == ("a reason",)


def test_half_a_measurement_is_none(measured: Measurement, tmp_path: Path) -> None:
    folder = measured.write(tmp_path / "point")
    (folder / "measurement.json").unlink()  # it is written last
    with pytest.raises(InputError, match="not a whole measurement"):
        Measurement.read(folder)


def test_another_schema_is_refused(measured: Measurement, tmp_path: Path) -> None:
    head = measured.write(tmp_path / "point") / "measurement.json"
    head.write_text(json.dumps(json.loads(head.read_text()) | {"schema_version": 3}))
    with pytest.raises(InputError, match=r"schema_version\(=3\)"):
        Measurement.read(head.parent)


def test_frame_has_one_row_per_measurement(measured: Measurement) -> None:
    table = frame([measured, measured])
    assert len(table) == 2
    assert table.loc[0, "rate_rps"] == 2
    assert not table.loc[0, "valid"]
    assert table.loc[0, "ttft_p50_s"] == measured.summary()["ttft_p50_s"]


def test_a_list_of_measurements_is_shown_as_a_table(measured: Measurement) -> None:
    late = measured.renamed("late").judged(["the client sent late"])
    shown = Measurements([measured, late])._repr_html_()
    assert "<b>2 measurements</b>" in shown
    assert "cannot be trusted: late: the client sent late" in shown
    assert "output_tokens_per_s" in shown
    assert "0 measurements" in Measurements()._repr_html_()


def test_the_environment_names_this_machine() -> None:
    found = Environment.capture()
    assert found.hardware
    assert found.cpu_count >= 1
    assert "torch" in found.versions


def test_importing_the_package_is_light() -> None:
    code = "import sys, workbench.measure; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"vllm", "torch", "pandas", "aiohttp", "transformers"}
    assert not heavy & {name.split(".")[0] for name in loaded.stdout.split()}


@pytest.mark.vllm
def test_every_metric_is_documented() -> None:
    root = Path(__file__).parents[3]
    results = root / "experiments" / "results" / "h100"
    (ceilings,) = results.glob("ceilings-*.json")
    whole = Measurement.read(results / "rates" / "rate8")
    found = whole.summary(Slo(), ceilings=Ceilings.read(ceilings), usd_per_hour=2.5)
    assert 0 < found["mbu"] < 1
    assert found["joules_per_token"] > 0
    text = (root / "docs" / "METRICS.md").read_text()
    for name in found:
        spread = re.sub(r"_(mean|p50|p99)_s$", "", name)
        assert f"`{name}`" in text or f"`{spread}_*_s`" in text, name


def test_metrics_are_those_of_the_stock_benchmark() -> None:
    from vllm.benchmarks.lib.endpoint_request_func import RequestFuncOutput
    from vllm.benchmarks.serve import calculate_metrics

    rng = np.random.default_rng(3)
    outcomes = [
        outcome(i, 1 + i / 10, rng.gamma(2, 0.1), list(rng.gamma(2, 0.01, i % 5)))
        for i in range(40)
    ]
    outcomes[7].error = "HTTP 500"
    ours = measurement(outcomes).summary(Slo(ttft_p99_s=0.2, tpot_p99_s=0.02))
    theirs, _ = calculate_metrics(
        [],
        [
            RequestFuncOutput(
                success=o.error is None,
                latency=o.end_s - o.sent_s,
                output_tokens=o.output_tokens,
                ttft=o.first_token_s - o.sent_s,
                itl=o.itl_s,
                prompt_len=o.prompt_tokens,
                start_time=o.sent_s,
            )
            for o in outcomes
        ],
        dur_s=ours["duration_s"],
        tokenizer=None,
        selected_percentiles=[50, 99],
        goodput_config_dict={"ttft": 200, "tpot": 20},
    )
    pairs = {
        "requests": theirs.completed,
        "errors": theirs.failed,
        "request_throughput_rps": theirs.request_throughput,
        "output_tokens_per_s": theirs.output_throughput,
        "total_tokens_per_s": theirs.total_token_throughput,
        "goodput_rps": theirs.request_goodput,
    }
    for metric, attribute in (("ttft", "ttft"), ("tpot", "tpot"), ("itl", "itl"), ("e2e", "e2el")):
        pairs[f"{metric}_mean_s"] = getattr(theirs, f"mean_{attribute}_ms") / 1e3
        percentiles = dict(getattr(theirs, f"percentiles_{attribute}_ms"))
        pairs[f"{metric}_p50_s"] = percentiles[50] / 1e3
        pairs[f"{metric}_p99_s"] = percentiles[99] / 1e3
    for name, value in pairs.items():
        assert ours[name] == pytest.approx(value, rel=1e-9), name
