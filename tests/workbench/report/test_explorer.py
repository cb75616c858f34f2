"""Any promise and any peak, from what one replica shows."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from serving.errors import InputError
from serving.plan import EngineArgs, Slo
from simulations.plan_model import PlanModel, replica_under
from simulations.traffic import Fixed, Poisson, Workload
from workbench.report import explorer as module
from workbench.report.explorer import Explorer

if TYPE_CHECKING:
    from conftest import Results

ENGINE = EngineArgs(max_model_len=512, max_num_seqs=32, max_num_batched_tokens=1024)
LOAD = Workload(
    arrivals=Poisson(rate_rps=1.0),
    prompt_tokens=Fixed(tokens=64),
    output_tokens=Fixed(tokens=32),
    duration_s=60,
)
PICKED = {"ttft_p99_s": 0.1, "tpot_p99_s": 0.02, "peak_rps": 200.0}


@pytest.fixture(scope="module")
def explorer(results: Results) -> Explorer:
    return Explorer(LOAD, results.latency_models[0], ENGINE, usd_per_hour=2.0)


def test_what_it_calls_sustained_keeps_the_promise(explorer: Explorer, results: Results) -> None:
    slo = Slo(ttft_p99_s=0.1, tpot_p99_s=0.02)
    rate_rps = explorer.sustained_rps(slo)
    for rate, kept in ((0.9 * rate_rps, True), (1.2 * rate_rps, False)):
        found = replica_under(rate, LOAD, results.latency_models[0], ENGINE)
        assert all(found[name] <= limit for name, limit in slo.limits().items()) == kept


def test_a_looser_promise_never_asks_for_more(explorer: Explorer) -> None:
    hours = [
        explorer.fleet(**{**PICKED, "ttft_p99_s": ttft}).gpu_hours for ttft in (0.03, 0.1, 1.0)
    ]
    assert hours == sorted(hours, reverse=True)


def test_the_fleet_carries_the_rate_at_every_moment(explorer: Explorer) -> None:
    found = explorer.fleet(**PICKED)
    day = found.day
    assert (day["replicas"] * found.sustained_rps >= day["offered_rps"]).all()
    assert ((day["replicas"] - 1) * found.sustained_rps < day["offered_rps"]).all()
    assert day["offered_rps"].max() == pytest.approx(200, rel=0.01)
    assert found.peak_gpu_hours == 24 * day["replicas"].max()
    assert f"{found.gpu_hours:.0f} GPU hours ({2 * found.gpu_hours:,.0f} USD)" in str(found)
    assert list(found.plot().data[1].y) == list(day["replicas"])


def test_what_nothing_keeps_is_said(explorer: Explorer) -> None:
    found = explorer.fleet(**{**PICKED, "ttft_p99_s": 0.001})
    assert found.sustained_rps == 0
    assert (
        str(found) == "No replica keeps TTFT p99 1 ms and TPOT p99 20 ms, however light the load."
    )


def test_an_unknown_day_is_refused(explorer: Explorer) -> None:
    with pytest.raises(InputError, match="moon"):
        explorer.fleet(**PICKED, profile="moon")


def test_sliders_draw_once_when_they_rest(explorer: Explorer) -> None:
    asked: list[dict[str, Any]] = []

    async def moved() -> Any:
        controls = explorer.controls(**PICKED)
        *sliders, answer = controls.children
        assert answer.outputs == ()  # the static figure stands above
        with pytest.MonkeyPatch.context() as patch:
            fleet = explorer.fleet
            patch.setattr(explorer, "fleet", lambda **now: asked.append(now) or fleet(**now))
            for peak_rps in (210.0, 220.0, 300.0):
                sliders[2].value = peak_rps
            await asyncio.sleep(4 * module._STILL_S)
        return answer

    answer = asyncio.run(moved())
    assert asked == [{**PICKED, "peak_rps": 300.0, "profile": "servegen-deepseek-r1-10min"}]
    words, figure = (output["data"] for output in answer.outputs)
    assert "The day asks for" in words["text/html"]
    packed = figure["application/vnd.plotly.v1+json"]["data"][0]["y"]
    offered = np.frombuffer(base64.b64decode(packed["bdata"]), packed["dtype"])
    assert offered.max() == pytest.approx(300, rel=0.01)


def test_the_static_answer_comes_first(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    monkeypatch.setattr("IPython.display.display", lambda *objects: shown.extend(objects))
    explorer.show(**PICKED)
    assert [type(one).__name__ for one in shown] == ["Fleet", "Figure", "VBox"]

    def absent(**picked: Any) -> None:
        raise ModuleNotFoundError("ipywidgets")

    shown.clear()
    monkeypatch.setattr(explorer, "controls", absent)
    explorer.show(**PICKED)
    assert [type(one).__name__ for one in shown] == ["Fleet", "Figure"]


def test_a_plan_asks_for_the_fewest_replicas_that_keep_the_promise(
    explorer: Explorer, results: Results
) -> None:
    plan = results.tuning.winner.model_copy(update={"engine": ENGINE, "slo": Slo(ttft_p99_s=0.1)})
    model = PlanModel(plan, results.latency_models[0], LOAD)
    one = explorer.sustained_rps(plan.slo)
    found = model.predict(pd.DataFrame({"rate_rps": [0.5 * one, 2.5 * one, 500 * one]}))
    assert list(found["replicas"]) == [1, 3, plan.hpa.max_replicas if plan.hpa else 0]
    assert list(found["keeps_slo"]) == [True, True, False]
    assert np.allclose(found["usd_per_hour"], found["replicas"] * plan.gpu_usd_per_hour)
    tokens_per_hour = 3600 * 0.5 * one * 32
    assert found["usd_per_million_output_tokens"][0] == pytest.approx(
        plan.gpu_usd_per_hour / tokens_per_hour * 1e6, rel=0.01
    )
    with pytest.raises(InputError, match="rate_rps"):
        model.predict(pd.DataFrame({"load": [1.0]}))
    with pytest.raises(InputError, match="must be > 0"):
        model.predict(pd.DataFrame({"rate_rps": [0.0]}))
