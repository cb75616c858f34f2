"""Paired comparison: pairing, resuming, honesty of the interval."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serving.errors import InputError, MeasurementError
from serving.plan import EngineArgs, Variant
from simulations.traffic import ClosedLoop, Poisson, Uniform, Workload
from workbench.measure import FakeEngine, Measurement
from workbench.measure.compare import Arm, Comparison, compare, interval
from workbench.measure.fake import StepTime

from .support import ENGINE, toy_variant

LOAD = Workload(
    arrivals=Poisson(rate_rps=20),
    prompt_tokens=Uniform(min_tokens=10, max_tokens=40),
    output_tokens=Uniform(min_tokens=4, max_tokens=20),
    duration_s=4.0,
)
CLOSED = LOAD.at(arrivals=ClosedLoop(concurrency=4, requests=12))
starts: list[str] = []


def start(variant: Variant, engine_args: EngineArgs, folder: Path) -> FakeEngine:
    """The fast variant takes 0.8 of the time for everything; each engine has noise of its own."""
    starts.append(variant.name)
    factor = 0.8 if variant.name == "fast" else 1.0
    time = StepTime(
        base_s=4e-3 * factor,
        per_token_s=2e-5 * factor,
        per_seq_s=8e-5 * factor,
        per_kv_token_s=1e-7 * factor,
        noise=0.05,
    )
    return FakeEngine(variant, engine_args, seed=len(starts), step_time=time)


@pytest.fixture
def arms(tmp_path: Path) -> tuple[Arm, Arm]:
    starts.clear()
    return tuple(  # type: ignore[return-value]
        Arm(name, toy_variant(tmp_path / "models", name), ENGINE) for name in ("slow", "fast")
    )


def test_the_ratio_is_the_one_that_was_built_in(arms: tuple[Arm, Arm], tmp_path: Path) -> None:
    found = compare(*arms, CLOSED, folder=tmp_path / "runs", start=start, narrow=0.03)
    rows = found.rows.set_index("metric")
    assert rows.loc["tpot_p50_s", "low"] <= 0.8 <= rows.loc["tpot_p50_s", "high"]
    assert rows.loc["output_tokens_per_s", "ratio"] == pytest.approx(1.25, rel=0.02)
    assert rows.loc["tpot_p50_s", "verdict"] == "b is lower"
    assert rows.loc["output_tokens_per_s", "verdict"] == "b is higher"
    assert found.narrow_enough
    [repeats] = found.rows["repeats"].unique()
    assert 6 <= repeats <= 8


def test_both_arms_get_the_same_prompts_and_arrivals(arms: tuple[Arm, Arm], tmp_path: Path) -> None:
    compare(*arms, LOAD, folder=tmp_path, start=start, min_repeats=2, max_repeats=2)
    for r in range(2):
        one, other = (Measurement.read(tmp_path / f"{arm.name}-repeat{r}") for arm in arms)
        for column in ("scheduled_s", "prompt_tokens", "asked_output_tokens"):
            assert one.requests[column].tolist() == other.requests[column].tolist()
    first, second = (Measurement.read(tmp_path / f"slow-repeat{r}") for r in range(2))
    assert first.requests["scheduled_s"].tolist() != second.requests["scheduled_s"].tolist()


def test_one_engine_each_or_in_turns(arms: tuple[Arm, Arm], tmp_path: Path) -> None:
    compare(*arms, LOAD, folder=tmp_path / "a", start=start, min_repeats=4, max_repeats=4)
    assert starts == ["slow", "fast"]
    starts.clear()
    compare(
        *arms,
        LOAD,
        folder=tmp_path / "b",
        start=start,
        min_repeats=4,
        max_repeats=4,
        together=False,
    )
    assert starts == ["slow", "fast", "slow", "fast", "slow"]  # a, b b, a a, b b, a


def test_it_goes_on_where_it_was(arms: tuple[Arm, Arm], tmp_path: Path) -> None:
    compare(*arms, LOAD, folder=tmp_path, start=start, min_repeats=2, max_repeats=2)
    starts.clear()
    again = compare(*arms, LOAD, folder=tmp_path, start=start, min_repeats=2, max_repeats=2)
    assert starts == []
    assert Comparison.read(tmp_path / "comparison.json").rows.equals(again.rows)
    compare(*arms, LOAD, folder=tmp_path, start=start, min_repeats=3, max_repeats=3)
    assert starts == ["slow", "fast"]


class Failing(FakeEngine):
    def add(self, request_id: int, request: object) -> str | None:
        return "no" if request_id == 5 else super().add(request_id, request)  # type: ignore[arg-type]


def test_what_cannot_be_trusted_stops_it_unless_forced(
    arms: tuple[Arm, Arm], tmp_path: Path
) -> None:
    runs: list[Failing] = []

    def failing(variant: Variant, engine_args: EngineArgs, folder: Path) -> Failing:
        runs.append(Failing(variant, engine_args))
        return runs[-1]

    with pytest.raises(
        MeasurementError, match=r"slow-repeat0 cannot be trusted: 1 of \d+ requests"
    ):
        compare(*arms, LOAD, folder=tmp_path, start=failing)
    assert runs[0].runs == 1 + 3  # the warm-up, and three attempts
    forced = compare(
        *arms, LOAD, folder=tmp_path, start=failing, force=True, min_repeats=2, max_repeats=2
    )
    assert forced.doubts
    assert "cannot be trusted" in forced._repr_html_()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"min_repeats": 1}, "min_repeats"), ({"metrics": ("ttft",)}, r"metric\(='ttft'\)")],
)
def test_what_cannot_be_is_refused(
    arms: tuple[Arm, Arm], tmp_path: Path, options: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        compare(*arms, LOAD, folder=tmp_path, start=start, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="both arms are named"):
        compare(arms[0], arms[0], LOAD, folder=tmp_path, start=start)


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_intervals_hold_the_truth_also_when_one_stops_early(noise: float) -> None:
    """Log-normal noise, stopped as `compare` stops: 6 to 20 repeats, half width within 5 %."""
    rng = np.random.default_rng(0)
    covered, widths = 0, []
    trials = 300
    for _ in range(trials):
        logs = np.log(1.3) + rng.normal(0, noise, 20)
        for n in range(6, 21):
            ratio, low, high = interval(logs[:n])
            if (high - low) / 2 <= 0.05 * ratio:
                break
        covered += low <= 1.3 <= high
        widths.append((high - low) / 2 / ratio)
    assert covered / trials >= 0.90
    assert np.median(widths) <= 0.055
