"""How a claim is judged: by whole intervals, of pairs on the same seeds."""

from __future__ import annotations

from typing import Any

import pytest

from simulations.idle import IdleStudy
from simulations.scenarios import FleetStudy, Judgement
from simulations.studies import Done, StudyAnswer, answer_of, answer_of_idle, judge

VALUES = {
    ("a", "x"): [1.0, 1.1, 0.9],
    ("b", "x"): [2.0, 2.1, 1.9],
    ("c", "x"): [0.0, 2.0, 1.0],
}


def read(**rule: Any) -> tuple[str, str]:
    found = judge(
        Judgement.model_validate({"metric": "x", "arm": "a"} | rule),
        lambda arm, metric: VALUES.get((arm, metric), []),
    )
    return found.verdict, found.words


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ({"above": 0.5}, "holds"),
        ({"above": 1.5}, "does not hold"),
        ({"above": 1.0}, "depends"),
        ({"below": 1.5}, "holds"),
        ({"below": 0.5}, "does not hold"),
        ({"arm": "c", "above": 0.5}, "depends"),
        ({"arm": "b", "against": "a", "above": 0.9}, "holds"),
        ({"arm": "b", "against": "a", "above": 1.1}, "does not hold"),
        ({"arm": "b", "against": "a", "compared": "ratio", "above": 1.7}, "holds"),
        ({"arm": "b", "against": "c", "compared": "ratio", "above": 1.8}, "depends"),
        ({"arm": "nobody", "above": 1}, "depends"),
    ],
)
def test_a_claim_holds_where_the_whole_interval_does(rule: dict[str, Any], verdict: str) -> None:
    assert read(**rule)[0] == verdict


def test_pairs_on_the_same_seeds_are_sharper_than_the_arms() -> None:
    """b is a + 1 under every seed: the difference has no width although both arms have one."""
    _, words = read(arm="b", against="a", above=0.5)
    assert words == "x of b minus that of a is 1, above 0.5"
    assert "[" in read(above=0.5)[1]


@pytest.mark.parametrize("rule", [{}, {"above": 1, "below": 2}])
def test_a_rule_names_one_limit(rule: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="exactly one of above and below"):
        read(**rule)


def study(**changes: Any) -> FleetStudy:
    lengths = {"kind": "fixed", "tokens": 10}
    return FleetStudy.model_validate(
        {
            "name": "tiny",
            "question": "Is b slower?",
            "claim": "b is slower.",
            "device": "h100",
            "plan": {
                "variant": {"name": "v", "model": "somewhere"},
                "engine": {},
                "slo": {},
                "replicas": 1,
            },
            "workload": {
                "arrivals": {"kind": "constant", "rate_rps": 1},
                "prompt_tokens": lengths,
                "output_tokens": lengths,
            },
            "arms": [{"name": "a"}, {"name": "b"}],
            "metrics": ["x", "y"],
            "answer": [{"metric": "x", "arm": "b", "against": "a", "above": 0}],
        }
        | changes
    )


def runs() -> list[Done]:
    return [
        Done(arm=arm, seed=seed, metrics={"x": value} | ({"y": 1.0} if seed else {}))
        for arm in ("b", "a")
        for seed, value in enumerate(VALUES[arm, "x"])
    ]


def test_the_table_has_values_and_what_is_more_than_in_the_first_arm() -> None:
    found = answer_of(study(), runs())
    assert found.verdict == "holds"
    assert found.answer == "The claim holds: x of b minus that of a is 1, above 0 (3 seeds)."
    assert [(cell.arm, cell.metric) for cell in found.cells] == [("a", "x"), ("b", "x")]
    assert found.cells[0].more is None
    assert found.cells[1].more is not None
    assert found.cells[1].more.value == pytest.approx(1)
    assert [run.arm for run in found.runs] == ["a"] * 3 + ["b"] * 3
    assert StudyAnswer.model_validate_json(found.model_dump_json()) == found
    assert list(found.frame()["arm"]) == ["a", "b"]


def test_readings_that_disagree_depend() -> None:
    rules = [{"metric": "x", "arm": "b", "above": 1.5}, {"metric": "x", "arm": "a", "above": 1.5}]
    assert answer_of(study(answer=rules), runs()).verdict == "depends"


def test_one_seed_says_that_it_has_no_interval() -> None:
    one = [run for run in runs() if run.seed == 0]
    assert "one seed, so without an interval" in answer_of(study(), one).answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"metric": "x", "arm": "c", "above": 0}, r"answer\(arm='c'\)"),
        ({"metric": "z", "arm": "a", "above": 0}, r"answer\(metric='z'\)"),
    ],
)
def test_a_rule_names_what_there_is(answer: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        study(answer=[answer])


def test_quick_changes_every_arm_and_the_study_is_left_alone() -> None:
    declared = study(quick={"workload.duration_s": 7.0})
    assert [case.workload.duration_s for case in declared.cases(quick=True)] == [7.0, 7.0]
    assert [case.workload.duration_s for case in declared.cases()] == [60.0, 60.0]


def test_a_study_by_arithmetic_is_answered_alike() -> None:
    declared = IdleStudy(
        name="idle", question="?", claim="!", profiles=("microsoft365-c", "servegen-m-mid")
    )
    found = answer_of_idle(declared)
    assert found.verdict == "depends"
    assert found.limit == declared.above
    assert {cell.metric for cell in found.cells} == {"night_idle_share"}
