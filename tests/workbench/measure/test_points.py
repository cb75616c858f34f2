"""The stage functions on the fake engine: resume, pairing, order, refusal before any start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from serving.errors import InputError, ModelError
from serving.plan import EngineArgs, Variant
from simulations.traffic import Fixed, Poisson, Workload
from workbench.measure import FakeEngine, Measurement, Request, Run, measure
from workbench.measure.prompts import ordinary_tokens, requests_for
from workbench.measure.sweeps import sweep_batches, sweep_rates

from .support import ENGINE, toy_variant

WORKLOAD = Workload(
    arrivals=Poisson(rate_rps=10),
    prompt_tokens=Fixed(tokens=20),
    output_tokens=Fixed(tokens=5),
    duration_s=6,
    warmup_s=1,
)


class Starts:
    """Starts fakes, counts them, keeps what they were sent, and can fail at a certain load."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.engines: list[FakeEngine] = []
        self.loads: list[list[Request]] = []
        self.stopped = 0
        self._fail_at = fail_at

    def __call__(self, variant: Variant, engine_args: EngineArgs, folder: Path) -> FakeEngine:
        starts = self

        class Watched(FakeEngine):
            def run(self, requests: Sequence[Request], **options: Any) -> Run:
                if starts._fail_at == len(starts.loads):
                    raise KeyboardInterrupt
                starts.loads.append(list(requests))
                return super().run(requests, **options)

            def __exit__(self, *exc: object) -> None:
                starts.stopped += 1
                super().__exit__(*exc)

        self.engines.append(Watched(variant, engine_args))
        return self.engines[-1]


def rates(variant: Variant, folder: Path, start: Starts, **changes: Any) -> list[Measurement]:
    options: dict[str, Any] = {"rates_rps": (5, 10, 20), "engine_args": ENGINE, "seed": 0}
    options |= changes
    return sweep_rates(variant, WORKLOAD, folder=folder, start=start, **options)


def test_one_server_for_all_rates(variant: Variant, tmp_path: Path) -> None:
    start = Starts()
    points = rates(variant, tmp_path / "out", start)
    assert [point.rate_rps for point in points] == [5, 10, 20]
    assert [point.invalid for point in points] == [(), (), ()]
    assert len(start.engines) == start.stopped == 1
    assert len(start.loads) == 4  # the warm-up and three rates
    counted = points[0].requests[points[0].requests["counted"]]
    assert counted["scheduled_s"].min() >= 1


def test_finished_points_are_not_run_again(variant: Variant, tmp_path: Path) -> None:
    first = rates(variant, tmp_path / "out", Starts())
    again = Starts()
    points = rates(variant, tmp_path / "out", again)
    assert again.engines == []
    assert [p.summary() for p in points] == [p.summary() for p in first]


def test_an_interrupted_sweep_goes_on(variant: Variant, tmp_path: Path) -> None:
    broken = Starts(fail_at=2)  # warm-up, first rate, Ctrl-C
    with pytest.raises(KeyboardInterrupt):
        rates(variant, tmp_path / "out", broken)
    assert broken.stopped == 1
    start = Starts()
    points = rates(variant, tmp_path / "out", start)
    assert [point.rate_rps for point in points] == [5, 10, 20]
    assert len(start.loads) == 3  # the warm-up and the two that were missing


def test_other_settings_are_measured_again(variant: Variant, tmp_path: Path) -> None:
    rates(variant, tmp_path / "out", Starts())
    for change in ({"engine_args": ENGINE.model_copy(update={"max_num_seqs": 4})}, {"seed": 1}):
        start = Starts()
        rates(variant, tmp_path / "out", start, **change)
        assert len(start.loads) == 4


def test_a_point_that_must_not_be_trusted_is_measured_again(
    variant: Variant, tmp_path: Path
) -> None:
    few = WORKLOAD.at(duration_s=1.5)
    for _ in range(2):
        start = Starts()
        [point] = sweep_rates(
            variant, few, rates_rps=(10,), engine_args=ENGINE, folder=tmp_path / "out", start=start
        )
        assert point.invalid
        assert len(start.engines) == 1


def test_variants_get_the_same_prompts_and_repeats_others(tmp_path: Path) -> None:
    variants = [toy_variant(tmp_path / name, name) for name in ("parent", "child")]
    start = Starts()
    points = sweep_batches(
        variants,
        engine_args=ENGINE,
        batches=(1, 4),
        prompt_tokens=8,
        output_tokens=4,
        folder=tmp_path / "out",
        start=start,
    )
    assert [point.name for point in points[:4]] == [
        "parent-batch1-repeat0",
        "parent-batch4-repeat0",
        "parent-batch1-repeat1",
        "parent-batch4-repeat1",
    ]
    assert len(start.engines) == 2
    assert all(point.mode == "offline" and not point.invalid for point in points)
    prompts = [[r.prompt_token_ids for r in load] for load in start.loads]
    assert prompts[:5] == prompts[5:]
    measured = [tuple(prompt) for load in prompts[1:5] for prompt in load]
    assert len(set(measured)) == len(measured)


def test_other_lengths_are_measured_once_on_the_same_engine(
    variant: Variant, tmp_path: Path
) -> None:
    start = Starts()
    points = sweep_batches(
        [variant],
        engine_args=ENGINE,
        batches=(1, 4),
        shapes=((24, 4), (4, 24)),
        folder=tmp_path,
        start=start,
    )
    assert [point.name for point in points[4:]] == ["toy-24x4-batch4", "toy-4x24-batch4"]
    assert {p.requests["output_tokens"].iloc[0] for p in points[4:]} == {4, 24}
    assert len(start.engines) == 1


def test_more_concurrency_gives_more_tokens(variant: Variant, tmp_path: Path) -> None:
    points = sweep_batches(
        [variant], engine_args=ENGINE, batches=(1, 2, 4, 8), folder=tmp_path, start=Starts()
    )
    speed = [p.summary()["output_tokens_per_s"] for p in points[:4]]
    assert speed == sorted(speed)
    assert [p.batch for p in points[:4]] == [1, 2, 4, 8]
    assert [p.steps["decode_seqs"].max() for p in points[:4]] == [1, 2, 4, 8]


def test_measure_uses_the_engine_that_it_is_given(variant: Variant, tmp_path: Path) -> None:
    with FakeEngine(variant, ENGINE) as engine:
        options: dict[str, Any] = {"engine_args": ENGINE, "folder": tmp_path, "engine": engine}
        point = measure(variant, WORKLOAD, **options)
        named = measure(variant, WORKLOAD, name="again", **options)
    assert engine.runs == 2
    assert point.name == "toy-server-rate10"
    assert Measurement.read(tmp_path / "again").summary() == named.summary()


def test_progress_never_goes_back(variant: Variant, tmp_path: Path) -> None:
    said: list[tuple[str, float]] = []
    rates(variant, tmp_path, Starts(), on_progress=lambda *news: said.append(news))
    shares = [share for _, share in said]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert any("toy-rate20" in doing for doing, _ in said)


def test_a_request_beyond_the_context_is_refused_before_any_start(
    variant: Variant, tmp_path: Path
) -> None:
    start = Starts()
    long = WORKLOAD.at(output_tokens=Fixed(tokens=250))
    with pytest.raises(InputError, match=r"270 tokens.*max_model_len\(=256\)"):
        sweep_rates(variant, long, rates_rps=(5,), engine_args=ENGINE, folder=tmp_path, start=start)
    assert start.engines == []


def test_a_workload_without_requests_is_refused(variant: Variant) -> None:
    nothing = WORKLOAD.at(arrivals=Poisson(rate_rps=1e-6))
    with pytest.raises(InputError, match="no request"):
        requests_for(variant, nothing, ENGINE)


@pytest.mark.parametrize(
    "changes",
    [
        {"network": {"round_trip": {"kind": "constant", "seconds": 0.1}}},
        {"clients": {"timeout_s": 5}},
        {"priorities": {"shares": [0.5, 0.5]}},
    ],
)
def test_what_only_the_twin_can_do_is_refused(variant: Variant, changes: dict[str, Any]) -> None:
    [name] = changes
    with pytest.raises(InputError, match=f"{name} of the workload can only be simulated"):
        requests_for(variant, WORKLOAD.at(**changes), ENGINE)


def test_prompts_hold_no_special_token(variant: Variant) -> None:
    assert 0 not in ordinary_tokens(variant)
    assert len(ordinary_tokens(variant)) == 99
    made = requests_for(variant, WORKLOAD, ENGINE)
    assert made == requests_for(variant, WORKLOAD, ENGINE)
    assert all(0 not in request.prompt_token_ids for request in made)


def test_the_model_s_tokenizer_is_read_as_transformers_reads_it(real_variant: Variant) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_variant.model)
    expected = set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
    assert set(ordinary_tokens(real_variant)) == expected


def test_no_tokenizer_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer"):
        ordinary_tokens(Variant(name="v", model=str(tmp_path)))
