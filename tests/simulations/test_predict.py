"""Predictions: counted as measurements are, with intervals that say whose they are."""

from __future__ import annotations

import numpy as np
import pytest

from serving.errors import ExtrapolationError
from serving.values import Estimate
from simulations.latency import Coefficients, FittedRange, LatencyModel
from simulations.predict import predict
from simulations.simulate import simulate
from tests.simulations.models import latency, plan, workload

NARROW = FittedRange(prefill_tokens=8192, decode_seqs=8, kv_tokens=300_000)


def drawn(*factors: float) -> LatencyModel:
    """A model whose draws are so many times as slow."""
    model = latency()
    named = {name: getattr(model, name) for name in Coefficients.model_fields}
    draws = [Coefficients(**{name: f * value for name, value in named.items()}) for f in factors]
    return latency(draws=draws)


def test_predict_counts_after_the_warm_up_and_narrows_with_seeds() -> None:
    load = workload(rate_rps=8, duration_s=400, warmup_s=100)
    few = predict(plan(), latency(), load, seeds=range(3))
    many = predict(plan(), latency(), load, seeds=range(12))
    assert set(few.metrics) == {
        *("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "e2e_p50_s", "e2e_p99_s"),
        "output_tokens_per_s",
    }
    assert _width(many.metrics["e2e_p50_s"]) < _width(few.metrics["e2e_p50_s"])
    offered = 8 * np.mean(load.output_tokens.draw(10**5, np.random.default_rng(0)))
    assert many.metrics["output_tokens_per_s"].value == pytest.approx(offered, rel=0.1)


def _width(found: Estimate) -> float:
    return found.high - found.low


def test_throughput_counts_from_the_end_of_the_warm_up() -> None:
    """As a measurement's does: also where nothing arrives for a while after it."""
    sparse = workload(rate_rps=0.05, duration_s=200, warmup_s=20)
    found = predict(plan(), latency(), sparse, seeds=(0,)).metrics["output_tokens_per_s"]
    schedule = sparse.schedule()
    sent = schedule.arrived_at_s >= 20
    assert sent.sum() > 3
    tokens = schedule.output_tokens[sent].sum()
    last_s = schedule.arrived_at_s[sent][-1] - 20
    assert tokens / (last_s + 30) < found.value < tokens / last_s


def test_the_models_share_of_an_interval_follows_its_draws() -> None:
    load = workload(rate_rps=4, duration_s=200)
    sure, unsure = (predict(plan(), drawn(*f), load) for f in ((0.9998, 1.0002), (0.8, 1, 1.2)))
    none = predict(plan(), latency(), load)
    assert none.of_model == {}
    assert unsure.of_model["tpot_p50_s"] > 0.95 > 0.5 > sure.of_model["tpot_p50_s"]
    assert _width(sure.metrics["tpot_p50_s"]) < 1.5 * _width(none.metrics["tpot_p50_s"])
    # 1.96 standard deviations of 0.8, 1 and 1.2 times a time per token.
    half = _width(unsure.metrics["tpot_p50_s"]) / 2 / unsure.metrics["tpot_p50_s"].value
    assert half == pytest.approx(1.96 * 0.2, rel=0.15)
    for name, found in unsure.metrics.items():
        assert found.value == none.metrics[name].value, "draws move no value"


def test_a_fleet_says_which_part_of_its_intervals_is_the_models() -> None:
    load = workload(rate_rps=2, duration_s=300)
    model = drawn(0.8, 1.2)
    plain = simulate(plan(), load, model, seeds=(0, 1))
    told = simulate(plan(), load, model, seeds=(0, 1), draws=2)
    assert plain.of_model == {}
    assert 0.5 < told.of_model["tpot_p50_s"] <= 1
    assert _width(told.metrics["tpot_p50_s"]) > _width(plain.metrics["tpot_p50_s"])
    assert "of which model" in told._repr_html_()


def test_beyond_what_was_fitted_nothing_is_predicted_in_silence() -> None:
    model = latency(fitted_range=NARROW)
    load = workload(duration_s=100)
    with pytest.raises(ExtrapolationError, match=r"max_num_seqs\(=64\)"):
        predict(plan(), model, load)
    with pytest.raises(ExtrapolationError, match=r"max_num_seqs\(=64\)"):
        simulate(plan(), load, model, seeds=(0,))
    for doubts in (
        predict(plan(), model, load, force=True).doubts,
        simulate(plan(), load, model, seeds=(0,), force=True).doubts,
    ):
        assert len(doubts) == 1
        assert "8 sequences decoded together" in doubts[0]
