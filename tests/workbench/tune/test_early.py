"""A search whose trials end within their days finds what one of whole days finds."""

from __future__ import annotations

from pathlib import Path

from serving.plan import Slo
from simulations.traffic import Day, Fixed, Workload
from tests.workbench.tune.stub import ENGINE, candidate
from workbench.tune import SearchSpace, Tuning, tune

DAY = Workload(
    arrivals=Day(peak_rps=90),
    prompt_tokens=Fixed(tokens=32),
    output_tokens=Fixed(tokens=16),
    duration_s=1200,
    warmup_s=60,
)
SPACE = SearchSpace.model_validate(
    {"metrics": ["vllm_num_requests_running"], "min_replicas": [1, 12], "max_replicas": [2, 14]}
)


def searched(folder: Path, *, early: bool) -> Tuning:
    return tune(
        [candidate("parent")],
        DAY,
        Slo(ttft_p99_s=1.0),
        engine=ENGINE,
        space=SPACE,
        trials=12,
        sampler="random",
        choice_seeds=(50,),
        unseen_seeds=(100,),
        neighbour_seeds=0,
        early=early,
        storage=folder / "study.db",
    )


def test_the_same_trials_have_the_same_winner(tmp_path: Path) -> None:
    whole, early = (searched(tmp_path / str(how), early=how) for how in (False, True))
    assert early.winner == whole.winner
    assert early.winner_result.metrics == whole.winner_result.metrics
    assert early.table()["gpu_hours"].tolist() == whole.table()["gpu_hours"].tolist()
    assert "breaks the SLO" in set(early.trials["stopped"])
