"""What is searched is data: read from a file, fixed or freed, and every point of it is a Plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from serving.errors import InfeasibleError, InputError
from serving.hpa import GPU_UTILISATION, REQUESTS_RUNNING, REQUESTS_WAITING, TTFT_MEAN, milli
from simulations.fleet import Activation, Cluster
from simulations.traffic import Fixed, SharedPrefix
from tests.workbench.tune import stub
from tests.workbench.tune.stub import candidate, search
from workbench.tune import SearchSpace, TargetRange
from workbench.tune.admit import admit
from workbench.tune.point import Ground, Point, draw, parameters
from workbench.tune.rules import first_points
from workbench.tune.twin import cluster_of

SEQS = {"parent": (8, 4), "int8": (8, 2)}
FREE = SearchSpace(
    max_num_batched_tokens=(1024, 512),
    enable_prefix_caching=(False, True),
    result_cache_size=(0, 1000),
    sources=("Pods", "External", "Object"),
    scale_to_zero=(False, True),
    scale_up_period_s=(15, 60),
    scale_down_pods=(0, 2),
)
ONE_OF_EACH: dict[str, Any] = {
    "variants": "int8",
    "max_num_seqs": 8,
    "max_num_batched_tokens": 1024,
    "enable_prefix_caching": True,
    "result_cache_size": 0,
    "metrics": REQUESTS_WAITING,
    "targets": {REQUESTS_WAITING: 5},
    "sources": "External",
    "min_replicas": 1,
    "max_replicas": 9,
    "scale_to_zero": False,
    "warm_spares": 0,
    "scale_up_window_s": 0,
    "scale_up_pods": 4,
    "scale_up_percent": 100,
    "scale_up_period_s": 15,
    "scale_up_tolerance": 0.1,
    "scale_down_window_s": 300,
    "scale_down_pods": 0,
    "scale_down_percent": 100,
    "scale_down_period_s": 15,
    "scale_down_tolerance": 0.2,
}


class Dice:
    """A trial that throws dice, and counts how often it is asked."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.asked = 0

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.asked += 1
        return choices[int(self.rng.integers(len(choices)))]

    def suggest_int(self, name: str, low: int, high: int) -> int:
        self.asked += 1
        return int(self.rng.integers(low, high + 1))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        self.asked += 1
        return float(np.exp(self.rng.uniform(np.log(low), np.log(high))))


def sized(space: SearchSpace) -> SearchSpace:
    return space.sized(4, stub.ENGINE, stub.WORKLOAD)


def ground(space: SearchSpace) -> Ground:
    return Ground(
        candidates=(candidate("parent"), candidate("int8")),
        engine=stub.ENGINE,
        slo=stub.SLO,
        space=space,
        gpu_usd_per_hour=2.5,
        gpus_per_replica=1,
    )


def test_every_point_is_a_plan_and_is_drawn_again_from_its_parameters() -> None:
    import optuna

    space = sized(FREE)
    seen: dict[str, set[Any]] = {}
    for seed in range(200):
        point = draw(Dice(seed), space, SEQS)
        plan = ground(space).plan_of(point)
        assert plan.hpa is not None
        assert (plan.hpa.min_replicas == 0) == point["scale_to_zero"]
        again = draw(optuna.trial.FixedTrial(parameters(point, space, SEQS)), space, SEQS)
        assert again == point
        for name, value in point.items():
            seen.setdefault(name, set()).add(value)
    for name in type(space).model_fields:
        if name in seen and name not in ("metrics", "min_replicas", "max_replicas"):
            assert seen[name] == set(getattr(space, name)), name


@pytest.mark.parametrize("space", [SearchSpace(), FREE, SearchSpace.model_validate(ONE_OF_EACH)])
def test_where_the_search_starts_lies_in_the_space(space: SearchSpace) -> None:
    import optuna

    own = sized(space)
    points = list(first_points(own, "int8", 8, 4, running=6.0))
    assert points
    for point in points:
        ground(own).plan_of(point)
        fixed = optuna.trial.FixedTrial(parameters(point, own, SEQS))
        assert draw(fixed, own, SEQS) == point


def test_what_is_fixed_is_not_asked() -> None:
    assert set(ONE_OF_EACH) == set(SearchSpace.model_fields), "every parameter can be fixed"
    space = sized(SearchSpace.model_validate(ONE_OF_EACH))
    dice = Dice(0)
    plan = ground(space).plan_of(draw(dice, space, {"int8": (8,)}))
    assert dice.asked == 0
    assert plan.hpa is not None
    assert plan.hpa.behavior is not None
    assert plan.hpa.behavior.scale_up is not None
    assert plan.hpa.behavior.scale_down is not None
    assert [p.type for p in plan.hpa.behavior.scale_up.policies or ()] == ["Pods", "Percent"]
    assert [p.type for p in plan.hpa.behavior.scale_down.policies or ()] == ["Percent"]
    assert str(plan.hpa.behavior.scale_up.tolerance) == "100m"
    assert str(plan.hpa.behavior.scale_down.tolerance) == "200m"
    assert plan.engine.enable_prefix_caching


@pytest.mark.parametrize(
    ("source", "metric", "kind"),
    [
        ("Pods", REQUESTS_WAITING, "average_value"),
        ("External", REQUESTS_WAITING, "average_value"),
        ("Object", REQUESTS_RUNNING, "average_value"),
        ("External", GPU_UTILISATION, "value"),
        ("Object", TTFT_MEAN, "value"),
    ],
)
def test_a_sum_is_held_at_an_average_and_a_mean_at_a_value(
    source: str, metric: str, kind: str
) -> None:
    fields = ONE_OF_EACH | {"metrics": metric, "targets": {metric: 0.5}, "sources": source}
    space = sized(SearchSpace.model_validate(fields))
    point = draw(Dice(0), space, {"int8": (8,)})
    plan = ground(space).plan_of(point)
    assert plan.hpa is not None
    (found,) = plan.hpa.metrics
    assert found.type == source
    target = getattr(found, source.lower()).target
    held = 0.5 * (8 if metric == REQUESTS_RUNNING else 1)
    assert milli(getattr(target, kind)) == 1000 * held


def test_a_fleet_that_scales_to_zero_is_woken_up() -> None:
    space = sized(SearchSpace(sources=("External",), scale_to_zero=(True,)))
    point: Point = draw(Dice(0), space, SEQS)
    plan = ground(space).plan_of(point)
    assert cluster_of(plan, Cluster()).activation == Activation()
    slow = Cluster(activation=Activation(cooldown_s=900))
    assert cluster_of(plan, slow) == slow
    never = ground(sized(SearchSpace())).plan_of(draw(Dice(0), sized(SearchSpace()), SEQS))
    assert cluster_of(never, Cluster()).activation is None


def test_a_file_fixes_and_frees(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        f"metrics: [{REQUESTS_WAITING}, [{GPU_UTILISATION}, {TTFT_MEAN}]]\n"
        f"targets: {{{REQUESTS_WAITING}: [1, 10], {GPU_UTILISATION}: 70, {TTFT_MEAN}: {{low: 0.1}}}}\n"
        "max_replicas: [4, 16]\nmin_replicas: 2\nscale_down_window_s: [0, 300]\nvariants: int8\n"
    )
    space = SearchSpace.read_file(path, SearchSpace(warm_spares=(0,)))
    assert space.metrics == ((REQUESTS_WAITING,), (GPU_UTILISATION, TTFT_MEAN))
    assert space.targets[REQUESTS_WAITING] == TargetRange(low=1, high=10, summed=True)
    assert space.targets[GPU_UTILISATION] == TargetRange(low=70, high=70)
    assert space.targets[TTFT_MEAN] == TargetRange(low=0.1, high=2)
    assert (space.min_replicas, space.max_replicas) == ((2, 2), (4, 16))
    assert space.scale_down_window_s == (0, 300)
    assert space.warm_spares == (0,)
    assert space.scale_up_pods == SearchSpace().scale_up_pods
    written = tmp_path / "space.json"
    written.write_text(space.model_dump_json())
    assert SearchSpace.read_file(written) == space


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("scale_down_windows_s: 5", "scale_down_windows_s"),
        ("sources: Custom", "sources"),
        ("scale_to_zero: true", "External or Object"),
        ("scale_up_pods: 0", "nothing would scale"),
        ("scale_up_period_s: 0", "must be >= 1"),
        ("warm_spares: -1", "must be >= 0"),
        ("{max_num_seqs: 512, max_num_batched_tokens: [256, 1024]}", "must be >= max_num_seqs"),
        ("[1, 2]", "no mapping"),
        ("{", "not a search space"),
    ],
)
def test_a_file_without_sense_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=complaint):
        SearchSpace.read_file(path)
    with pytest.raises(InputError, match="cannot read"):
        SearchSpace.read_file(tmp_path / "none.yaml")


def test_values_without_sense_are_refused() -> None:
    with pytest.raises(ValidationError, match="must have a range in targets"):
        SearchSpace(metrics=(("nothing",),))
    with pytest.raises(ValidationError, match=r"warm_spares\(=\(\)\)"):
        SearchSpace(warm_spares=())
    with pytest.raises(ValidationError, match=r"min_replicas\(=\(0, 2\)\)"):
        SearchSpace(min_replicas=(0, 2))
    with pytest.raises(ValidationError, match=r"low\(=2"):
        TargetRange(low=2, high=1)


def test_prefix_caching_is_tried_where_prompts_begin_alike() -> None:
    alike = stub.WORKLOAD.at(shared_prefix=SharedPrefix(groups=2, tokens=Fixed(tokens=16)))
    assert SearchSpace().sized(4, stub.ENGINE, alike).enable_prefix_caching == (False, True)
    assert sized(SearchSpace()).enable_prefix_caching == (False,)


def test_variants_and_engines_outside_the_space_are_left_out(tmp_path: Path) -> None:
    both = [candidate("parent"), candidate("int8")]
    space = SearchSpace(variants=("int8",))
    admitted = admit(both, stub.WORKLOAD, stub.SLO, stub.ENGINE, space)
    assert [c.variant.name for c in admitted.candidates] == ["int8"]
    assert "leave it out" in admitted.rejected["parent"]
    with pytest.raises(InputError, match=r"variants\(=\['int4'\]\)"):
        search(tmp_path, candidates=both, space=SearchSpace(variants=("int4",)))
    whole = stub.ENGINE.model_copy(update={"enable_chunked_prefill": False})
    with pytest.raises(InfeasibleError, match="not computed in chunks"):
        admit(both, stub.WORKLOAD, stub.SLO, whole, SearchSpace(max_num_batched_tokens=(512,)))
