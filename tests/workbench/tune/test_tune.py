"""The search keeps its constraint, repeats itself, survives being killed, and says what it cannot."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from serving.errors import InfeasibleError, InputError, MeasurementError
from serving.hpa import REQUESTS_RUNNING, REQUESTS_WAITING
from serving.plan import Slo
from serving.values import Estimate
from simulations.promise import broken
from simulations.result import SimResult
from simulations.traffic import Poisson
from tests.workbench.tune import stub
from tests.workbench.tune.stub import candidate, search
from workbench.tune import Candidate, SearchSpace, Tuning
from workbench.tune.evaluate import Score, failed
from workbench.tune.neighbours import next_best
from workbench.tune.rules import queue_hpas
from workbench.tune.search import _storage

INT8 = candidate("int8", speed=1.2)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def tuning(tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    return search(tmp_path_factory.mktemp("tuning"), trials=30)


# -- the winner ----------------------------------------------------------------------------------


def test_the_winner_keeps_the_slo_where_the_search_has_not_looked(tuning: Tuning) -> None:
    assert tuning.winner_result.keeps_slo
    assert list(tuning.winner_result.per_seed["seed"]) == [100, 101, 102]
    assert tuning.winner_result.metrics["ttft_p99_s"].high <= 0.5
    assert tuning.winner.variant.name == "int8"


def test_the_winner_is_the_cheapest_trial_that_does(tuning: Tuning) -> None:
    hours = tuning.winner_result.metrics["gpu_hours"].value
    kept = tuning.trials[tuning.trials["keeps_slo"]]
    assert hours >= kept["gpu_hours"].min() * (1 - 1e-9)
    assert (tuning.trials["gpu_hours"] < 0.999 * hours).any(), (
        "a cheaper one that breaks the SLO was tried"
    )
    assert hours < kept.head(6)["gpu_hours"].min(), "the search found more than it started from"


def test_a_trial_that_only_looked_good_is_passed_over(tuning: Tuning, tmp_path: Path) -> None:
    """The cheapest on the seeds of the search breaks the SLO on those of the final choice."""

    def luckier(*args: Any, seeds: Any, **kwargs: Any) -> SimResult:
        plan = args[0]
        cheap = plan.hpa is not None and stub.fleet_of(plan)[1] < 4.0
        result = stub.simulate(*args, seeds=seeds, **kwargs)
        return late(result) if min(seeds) >= 50 and cheap else result

    passed_over = search(tmp_path, trials=30, simulate=luckier)
    pd.testing.assert_frame_equal(passed_over.trials, tuning.trials)
    cheap, dear = (t.winner_result.metrics["gpu_hours"].value for t in (tuning, passed_over))
    assert cheap < 24 * 4.0 <= dear
    kept = tuning.trials[tuning.trials["keeps_slo"]]
    assert passed_over.passed_over == (kept["gpu_hours"] < 24 * 4.0).sum() > 0
    assert "broke it on the seeds of the final choice" in passed_over.generalisation_in_words()


def late(result: SimResult) -> SimResult:
    """The same with a TTFT that breaks the SLO."""
    ttft = {"ttft_p99_s": Estimate(value=0.62, low=0.62, high=0.62, n=1)}
    metrics = {**result.metrics, **ttft}
    return SimResult(**(vars(result) | {"metrics": metrics, "keeps_slo": False}))


def test_the_traffic_of_the_report_has_no_part_in_the_choice(
    tuning: Tuning, tmp_path: Path
) -> None:
    """Whatever comes there, the winner is the same; where it breaks the SLO, that is said."""

    def unlucky(*args: Any, seeds: Any, **kwargs: Any) -> SimResult:
        result = stub.simulate(*args, seeds=seeds, **kwargs)
        return late(result) if min(seeds) >= 100 else result

    found = search(tmp_path, trials=30, simulate=unlucky, neighbour_seeds=0)
    assert found.winner == tuning.winner
    assert found.passed_over == tuning.passed_over
    assert not found.winner_result.keeps_slo
    (doubt,) = found.own_doubts
    assert doubt == ("on unseen traffic the winner breaks the SLO (ttft_p99_s 0.62, limit 0.5)")


def test_the_prediction_replays_the_busy_hour_of_one_replica(tuning: Tuning) -> None:
    load = tuning.prediction.workload
    assert isinstance(load.arrivals, Poisson)
    # The stub's rate ends at 20 + 285 / 30 on 4 serving of 5 ready replicas; its last 24th is one row.
    assert load.arrivals.rate_rps == pytest.approx((20 + 285 / 30) / 4, rel=1e-3)
    assert load.prompt_tokens == stub.WORKLOAD.prompt_tokens
    assert 20 <= load.duration_s <= 30
    assert tuning.prediction.metrics["ttft_p50_s"].n == 3


def test_the_yardsticks_see_the_same_unseen_traffic(tuning: Tuning) -> None:
    table = tuning.baselines.set_index("name")
    assert list(table.index) == [
        *("static-peak", "article-hpa", "keda-queue", "vllm-stack-queue"),
        "clairvoyant bound",
    ]
    assert set(table["variant"]) == {tuning.winner.variant.name}
    both = tuning.table()
    assert both["name"].iloc[0] == tuning.winner.name
    assert len(both) == 1 + len(table)
    assert both["keeps_slo"].dtype == bool


def test_a_random_search_with_the_same_budget_is_a_yardstick_when_asked(
    tuning: Tuning, tmp_path: Path
) -> None:
    import optuna

    found = search(tmp_path, trials=30, random_baseline=True, neighbour_seeds=0)
    assert found.winner == tuning.winner
    rival = found.baselines.set_index("name").loc["random-search"]
    assert rival["gpu_hours"] >= found.winner_result.metrics["gpu_hours"].value
    kept = _storage(tmp_path / "study.db")
    studies = [
        optuna.load_study(study_name=name, storage=kept)
        for name in optuna.get_all_study_names(kept)
    ]
    assert [len(study.trials) for study in studies] == [30, 30]


def test_the_queue_rules_are_those_that_are_deployed() -> None:
    """KEDA: 5 a replica of the fleet's sum; the vLLM production stack: 1 in the whole fleet."""
    keda, stack = (hpa.metrics[0] for hpa in queue_hpas(9).values())
    assert keda.external is not None
    assert (keda.external.target.type, keda.external.target.average_value) == ("AverageValue", "5")
    assert stack.object is not None
    assert (stack.object.target.type, stack.object.target.value) == ("Value", "1")
    assert {m.metric.name for m in (keda.external, stack.object)} == {REQUESTS_WAITING}


# -- how much of it is left elsewhere, and what stands beside it --------------------------------


def test_cost_and_attainment_are_told_on_seen_and_on_unseen_traffic(tuning: Tuning) -> None:
    """By simulating the winner on the search's own seeds again."""
    table = tuning.generalisation().set_index("metric")
    again = stub.simulate(
        tuning.winner, stub.WORKLOAD, INT8.latency, seeds=(0, 1)[: tuning.seen_seeds], cluster=None
    )
    for name in ("gpu_hours", "slo_attainment", "ttft_p99_s"):
        assert table.loc[name, "seen"] == pytest.approx(again.metrics[name].value)
        assert table.loc[name, "unseen"] == tuning.winner_result.metrics[name].value
    said = tuning.generalisation_in_words()
    assert f"{table.loc['gpu_hours', 'seen']:,.1f} GPU hours" in said
    assert "3 seeds" in said
    assert said in tuning._repr_html_()
    assert ("the final choice" in said) == (tuning.passed_over > 0)


def test_every_free_parameter_has_neighbours_one_step_away(tuning: Tuning) -> None:
    around = tuning.neighbours
    assert around["seeds"].le(3).all()
    assert not around.duplicated(["parameter", "side"]).any()
    assert {"max_num_seqs", "warm_spares", "scale_down_window_s"} <= set(around["parameter"])
    ordered = around[around["side"] != 0]
    assert ((ordered["value"] - ordered["won"]) * ordered["side"] > 0).all()
    spares = around[around["parameter"] == "warm_spares"].set_index("side")
    assert (spares["value"] - spares["won"]).abs().eq(1).all()
    own = tuning.winner_result.metrics["gpu_hours"].value
    whole = around[around["seeds"] == 3]
    assert whole["cost_change"].to_numpy() == pytest.approx(whole["gpu_hours"] / own - 1)
    assert spares.loc[1, "cost_change"] > 0


def test_the_next_best_metrics_and_variant_are_neighbours_too(tuning: Tuning) -> None:
    around = tuning.neighbours[tuning.neighbours["side"] == 0].set_index("parameter")
    assert list(around.index) == ["metrics", "variant"]
    assert around.loc["variant", "step"] == "parent instead of int8"
    # The other variant is slower, so the same fleet is late.
    assert not around.loc["variant", "keeps_slo"] or around.loc["variant", "cost_change"] >= 0
    next_one, won = around.loc["metrics", "step"].split(" instead of ")
    others = tuning.trials[tuning.trials["metric"] != won]
    kept = others[others["keeps_slo"]].sort_values("gpu_hours", kind="stable")
    # Where none of the others keeps the SLO, the one that broke it least.
    assert (
        next_one
        in (kept if len(kept) else others)["metric"].head(1 if len(kept) else None).tolist()
    )


def test_the_next_best_brings_what_stands_and_falls_with_it() -> None:
    """Its target, or its batch; the rest is the winner's. What broke least counts where none keeps."""
    won = {"metrics": "a", "target of a": 1, "variant": "x", "max_num_seqs of x": 8, "spares": 0}
    other = {"metrics": "b", "target of b": 5, "variant": "y", "max_num_seqs of y": 4, "spares": 2}
    dear = {**other, "target of b": 6, "max_num_seqs of y": 2}
    scores = [Score({"gpu_hours": 9.0}, {"ttft": over}, (9.0,)) for over in (0.1, 0.2)]
    trials = [(won, scores[0]), (dear, scores[1]), (other, scores[0]), (dear, failed("no"))]
    metrics, variant = next_best(won, trials)
    assert metrics.point == {**won, "metrics": "b", "target of b": 5}
    assert variant.point == {**won, "variant": "y", "max_num_seqs of y": 4}
    kept = Score({"gpu_hours": 20.0}, {"ttft": -0.1}, (20.0,))
    metrics, _ = next_best(won, [*trials, (dear, kept)])
    assert metrics.point["target of b"] == 6
    assert list(next_best(won, trials[:1])) == []


def test_a_neighbour_that_breaks_the_slo_is_a_doubt_with_its_name_and_value(
    tuning: Tuning, tmp_path: Path
) -> None:
    """On unseen traffic a warm spare breaks the stub; the winner has none."""

    def brittle(plan: Any, *args: Any, seeds: Any, **kwargs: Any) -> SimResult:
        result = stub.simulate(plan, *args, seeds=seeds, **kwargs)
        return result if min(seeds) < 100 or plan.warm_spares == 0 else late(result)

    around = tuning.neighbours
    assert around.loc[around["side"] != 0, "keeps_slo"].all()
    assert len(tuning.own_doubts) == (~around["keeps_slo"]).sum()
    found = search(tmp_path, trials=30, simulate=brittle)
    assert found.winner == tuning.winner
    (doubt,) = set(found.own_doubts) - set(tuning.own_doubts)
    assert "with warm_spares at 1 instead of 0 it breaks the SLO" in doubt
    assert "ttft_p99_s 0.62, limit 0.5" in doubt
    assert doubt in found._repr_html_()


def test_who_does_not_look_around_has_no_neighbours(tmp_path: Path) -> None:
    found = search(tmp_path, trials=6, neighbour_seeds=0)
    assert len(found.neighbours) == 0
    assert found.own_doubts == ()
    assert len(Tuning.read(found.write(tmp_path / "tuning")).neighbours) == 0


# -- repeatable ----------------------------------------------------------------------------------


def test_another_seed_gives_other_trials(tuning: Tuning, tmp_path: Path) -> None:
    other = search(tmp_path, trials=12, seed=1)
    first = tuning.trials.head(12)
    assert not other.trials["gpu_hours"].equals(first["gpu_hours"])


@pytest.mark.parametrize(("calls", "store"), [(3, "study.log"), (17, "study.db")])
def test_a_killed_search_goes_on_as_if_nothing_had_been(
    calls: int, store: str, tmp_path: Path
) -> None:
    asked = [str(tmp_path / "killed"), str(calls), store]
    dead = subprocess.run(
        [sys.executable, "-m", "tests.workbench.tune.stub", *asked],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert dead.returncode == -9, dead.stderr
    assert running(tmp_path / "killed" / store) > 0
    resumed = search(tmp_path / "killed", storage=tmp_path / "killed" / store)
    whole = search(tmp_path / "whole")
    pd.testing.assert_frame_equal(resumed.trials, whole.trials)
    assert resumed.winner == whole.winner


def running(store: Path) -> int:
    """Trials that a dead search left."""
    import optuna

    kept = _storage(store)
    (name,) = optuna.get_all_study_names(kept)
    trials = optuna.load_study(study_name=name, storage=kept).get_trials()
    return sum(trial.state.name == "RUNNING" for trial in trials)


@pytest.mark.parametrize("sampler", ["gp", "random"])
def test_other_samplers_start_alike_and_repeat_themselves(sampler: str, tmp_path: Path) -> None:
    found, again, usual = (
        search(tmp_path / folder, sampler=chosen, trials=10)
        for folder, chosen in (("a", sampler), ("b", sampler), ("c", "tpe"))
    )
    pd.testing.assert_frame_equal(found.trials, again.trials)
    assert found.winner_result.keeps_slo
    hours = [one.trials["gpu_hours"].tolist() for one in (found, usual)]
    assert hours[0][:4] == hours[1][:4]
    assert hours[0] != hours[1]


def test_a_front_trades_cost_for_attainment(tmp_path: Path) -> None:
    import optuna

    found = search(tmp_path, trials=16, objective="front")
    front = found.front()
    assert len(front) > 1
    assert not found.trials["stopped"].any(), "every trial is judged on every seed"
    assert found.winner_result.keeps_slo
    kept = _storage(tmp_path / "study.db")
    (name,) = optuna.get_all_study_names(kept)
    study = optuna.load_study(study_name=name, storage=kept)
    best = sorted({tuple(trial.values) for trial in study.best_trials})
    assert best == list(zip(front["gpu_hours"], front["slo_attainment"], strict=True))


def test_a_second_run_adds_only_the_trials_that_are_missing(tmp_path: Path) -> None:
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> SimResult:
        nonlocal calls
        calls += 1
        return stub.simulate(*args, **kwargs)

    first = search(tmp_path, trials=8, simulate=counted, neighbour_seeds=0)
    needed = calls
    calls = 0
    again = search(tmp_path, trials=8, simulate=counted, neighbour_seeds=0)
    assert needed - calls == first.trials["seeds_run"].sum(), "no trial was simulated again"
    pd.testing.assert_frame_equal(again.trials, first.trials)
    more = search(tmp_path, trials=12, simulate=counted, neighbour_seeds=0)
    pd.testing.assert_frame_equal(more.trials.head(8)[["gpu_hours"]], first.trials[["gpu_hours"]])
    assert len(more.trials) == 12


def test_another_question_in_the_same_file_is_another_study(tmp_path: Path) -> None:
    search(tmp_path, trials=6)
    other = search(tmp_path, trials=6, slo=Slo(ttft_p99_s=0.4))
    assert len(other.trials) == 6
    with sqlite3.connect(tmp_path / "study.db") as store:
        assert store.execute("select count(*) from studies").fetchone() == (2,)


# -- what goes wrong -----------------------------------------------------------------------------


def test_a_trial_that_raises_is_a_failed_trial(tmp_path: Path) -> None:
    def fragile(plan: Any, *args: Any, **kwargs: Any) -> SimResult:
        if plan.name == "tuned" and plan.hpa.metrics[0].pods.metric.name == REQUESTS_WAITING:
            raise RuntimeError("no such queue")
        return stub.simulate(plan, *args, **kwargs)

    found = search(tmp_path, simulate=fragile)
    failed = found.trials[found.trials["state"] == "FAIL"]
    assert set(failed["error"]) == {"RuntimeError: no such queue"}
    assert not failed["keeps_slo"].any()
    assert failed["gpu_hours"].isna().all()
    assert len(found.trials) == 16
    assert found.winner_result.keeps_slo


def test_who_turns_requests_away_does_not_win(tuning: Tuning, tmp_path: Path) -> None:
    """Latencies are of those that were answered: rejecting the rest would look cheap and fast."""

    def rejecting(plan: Any, *args: Any, **kwargs: Any) -> SimResult:
        result = stub.simulate(plan, *args, **kwargs)
        turned_away = 0.05 if stub.fleet_of(plan)[1] < 4.0 else 0.0
        e = Estimate(value=turned_away, low=turned_away, high=turned_away, n=1)
        metrics = {**result.metrics, "rejected": e}
        kept = not broken(metrics, plan.slo)
        return SimResult(**(vars(result) | {"metrics": metrics, "keeps_slo": kept}))

    found = search(tmp_path, trials=30, simulate=rejecting)
    assert tuning.winner_result.metrics["gpu_hours"].value < 24 * 4.0
    assert found.winner_result.metrics["gpu_hours"].value >= 24 * 4.0
    turned_away = found.trials["rejected"] > 0.01
    assert turned_away.any()
    assert not found.trials.loc[turned_away, "keeps_slo"].any()


def test_a_search_in_which_all_trials_fail_says_why(tmp_path: Path) -> None:
    def raising(*args: Any, **kwargs: Any) -> SimResult:
        raise RuntimeError("the twin is broken")

    with pytest.raises(InfeasibleError, match=r"all 6 trials failed.*the twin is broken"):
        search(tmp_path, trials=6, simulate=raising)


def test_a_clearly_broken_first_seed_ends_a_trial(tuning: Tuning) -> None:
    table = tuning.trials
    clearly = table["ttft_p99_s"] > 1.5 * 0.5
    assert clearly.any()
    assert set(table.loc[clearly, "stopped"]) == {"breaks the SLO"}
    assert set(table.loc[~clearly, "stopped"]) == {"", "costs more"}
    assert (table["seeds_run"] == np.where(table["stopped"] == "", 2, 1)).all()
    assert (
        table.loc[table["stopped"] == "costs more", "gpu_hours"].min()
        > table.loc[table["keeps_slo"], "gpu_hours"].min()
    )


def test_an_slo_that_nothing_keeps_is_infeasible_and_says_how_near_it_came(tmp_path: Path) -> None:
    def slow(*args: Any, **kwargs: Any) -> SimResult:
        result = stub.simulate(*args, **kwargs)
        worse = {**result.metrics}
        worse["ttft_p99_s"] = result.metrics["ttft_p99_s"].model_copy(update={"value": 0.625})
        return SimResult(**(vars(result) | {"metrics": worse}))

    with pytest.raises(InfeasibleError) as raised:
        search(tmp_path, trials=8, simulate=slow)
    said = str(raised.value)
    assert "ttft_p99_s came down to 0.625, the limit is 0.5" in said
    assert "Loosen ttft_p99_s" in said


def test_a_front_of_which_nothing_keeps_the_slo_says_so(tmp_path: Path) -> None:
    def slow(*args: Any, **kwargs: Any) -> SimResult:
        result = stub.simulate(*args, **kwargs)
        late = {n: e.value + 0.6 for n, e in result.metrics.items() if n == "ttft_p99_s"}
        worse = {n: Estimate(value=v, low=v, high=v, n=1) for n, v in late.items()}
        return SimResult(
            **(vars(result) | {"metrics": {**result.metrics, **worse}, "keeps_slo": False})
        )

    found = search(tmp_path, trials=8, simulate=slow, objective="front")
    assert len(found.front()) > 0
    assert not found.winner_result.keeps_slo
    assert found.winner_result.per_seed["seed"].tolist() == [100, 101, 102]
    (doubt,) = found.own_doubts
    assert "nothing keeps the SLO in 8 trials: ttft_p99_s came down to 0." in doubt
    read = Tuning.read(found.write(tmp_path / "tuning"))
    assert read.own_doubts == found.own_doubts
    assert "nothing keeps the SLO" in read._repr_html_()


def test_an_slo_below_a_lone_request_is_infeasible_at_once(tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match=r"no variant can be searched.*one request at a time"):
        search(tmp_path, slo=Slo(ttft_p99_s=0.001))
    assert not (tmp_path / "study.db").exists()


def test_variants_that_must_not_win_are_left_out_with_the_reason(tmp_path: Path) -> None:
    found = search(
        tmp_path,
        trials=6,
        candidates=[
            candidate("parent"),
            candidate("pruned", speed=3.0, kept=0.95),
            candidate("unjudged", speed=3.0, kept=None),
            candidate(
                "unmeasured",
                speed=3.0,
                fitted_range={"prefill_tokens": 8, "decode_seqs": 8, "kv_tokens": 1024},
            ),
        ],
    )
    assert found.winner.variant.name == "parent"
    assert "loses 5.0% of its score" in found.rejected["pruned"]
    assert "not measured" in found.rejected["unjudged"]
    assert "prefill of 32 tokens" in found.rejected["unmeasured"]
    assert set(found.trials["variant"]) == {"parent"}


def test_what_rests_on_untrusted_measurements_has_to_be_forced(tmp_path: Path) -> None:
    doubt = "rate8: the client sent late"
    doubted = [candidate("parent", doubts=(doubt,))]
    with pytest.raises(
        MeasurementError, match="of 'parent' rests on what cannot be trusted: rate8"
    ):
        search(tmp_path, candidates=doubted)
    assert not (tmp_path / "study.db").exists()
    found = search(tmp_path, trials=6, candidates=doubted, force=True)
    assert found.doubts == found.prediction.doubts == (doubt,)
    assert Tuning.read(found.write(tmp_path / "tuning")).winner_result.doubts == found.doubts
    assert f"cannot be trusted: {doubt}" in found._repr_html_()


def test_batches_stay_within_what_was_measured(tmp_path: Path) -> None:
    narrow = {"prefill_tokens": 512, "decode_seqs": 4, "kv_tokens": 1024}
    found = search(tmp_path, trials=12, candidates=[candidate("parent", fitted_range=narrow)])
    assert set(found.trials["max_num_seqs of parent"]) <= {5, 2, 1}
    with pytest.raises(InfeasibleError, match=r"max_num_seqs\(=\(8,\)\) is beyond"):
        search(
            tmp_path,
            candidates=[candidate("parent", fitted_range=narrow)],
            space=SearchSpace(max_num_seqs=(8,)),
        )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"candidates": []}, "at least one"),
        ({"candidates": [candidate("a"), candidate("a")]}, r"\['a', 'a'\]"),
        ({"seeds": ()}, "at least one"),
        ({"unseen_seeds": (1, 100)}, r"unseen_seeds\(=\(1, 100\)\).*none twice"),
        ({"unseen_seeds": (52, 100)}, "none twice"),
        ({"choice_seeds": ()}, r"choice_seeds\(=\(\)\)"),
        ({"trials": 0}, r"trials\(=0\)"),
        ({"at_once": 0}, r"at_once\(=0\)"),
        ({"n_jobs": 0}, r"n_jobs\(=0\)"),
    ],
)
def test_questions_without_sense_are_refused(
    changes: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=complaint):
        search(tmp_path, **changes)


def test_a_latency_model_of_another_variant_is_refused() -> None:
    with pytest.raises(ValidationError, match="latency is of 'b', not of 'a'"):
        Candidate(variant=candidate("a").variant, latency=stub.latency("b"))


# -- kept ----------------------------------------------------------------------------------------


def test_a_tuning_is_read_as_it_was_written(tuning: Tuning, tmp_path: Path) -> None:
    read = Tuning.read(tuning.write(tmp_path / "tuning"))
    assert read.winner == tuning.winner
    assert read.prediction == tuning.prediction
    assert read.winner_result.metrics == tuning.winner_result.metrics
    assert read.winner_result.keeps_slo is True
    assert read.rejected == tuning.rejected
    assert read.own_doubts == tuning.own_doubts
    assert read.generalisation_in_words() == tuning.generalisation_in_words()
    for name in ("trials", "baselines", "neighbours"):
        pd.testing.assert_frame_equal(getattr(read, name), getattr(tuning, name), check_dtype=False)
    pd.testing.assert_frame_equal(read.winner_result.per_seed, tuning.winner_result.per_seed)
    assert "static-peak" in read._repr_html_()
    (tmp_path / "tuning" / "tuning.json").unlink()
    with pytest.raises(InputError, match="not a whole tuning"):
        Tuning.read(tmp_path / "tuning")


def test_the_study_opens_with_plain_optuna(tmp_path: Path) -> None:
    import optuna

    found = search(tmp_path, trials=8)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    (name,) = optuna.get_all_study_names(url)
    study = optuna.load_study(study_name=name, storage=url)
    assert len(study.trials) == 8
    best = found.trials.loc[found.trials["keeps_slo"], "gpu_hours"].min()
    assert study.best_value == best, "Optuna knows which trials keep the constraint"
    assert REQUESTS_RUNNING in {trial.params["metrics"] for trial in study.trials}


def test_progress_only_grows_and_ends_near_the_end(tmp_path: Path) -> None:
    said: list[tuple[str, float]] = []
    search(tmp_path, trials=6, on_progress=lambda doing, share: said.append((doing, share)))
    shares = [share for _, share in said]
    assert shares == sorted(shares)
    assert 0.9 < shares[-1] <= 1
    assert any("6 of 6 trials, best" in doing for doing, _ in said)
