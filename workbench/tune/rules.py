"""Rules of practice: where the search starts, and what its winner is held against.

| rule | metric and target | from |
|---|---|---|
| article | GPU utilisation 70 % and mean TTFT 300 ms | the usual advice for any GPU workload |
| queue | 5 waiting requests per replica | autoscaling guides for vLLM and TGI: 3 to 5 |
| keda-queue | 5 waiting per replica of a sum over pods, External | KEDA's prometheus trigger, as below |
| vllm-stack-queue | 1 waiting in the whole fleet, Object | the vLLM production stack's HPA, as below |
| running | 70 % of max_num_seqs running | the batch-size rule: stay below a full batch |
| capacity | 80 and 60 % of what a replica runs at the highest rate that keeps the SLO | Little's law |

The search starts from the article, queue, running, fixed fleets and capacity: under a tight TPOT a
replica is at its limit long before its batch is full, and the batch-size rule asks for too few. Its
winner is held against the article and the two queue rules that are deployed. KEDA's trigger is an
AverageValue by default, so `threshold: "5"` on vllm:num_requests_waiting is 5 per replica; a Value target
of 1 is multiplied at every sync for as long as the queue is longer: it overshoots while pods start.

Source:  vllm-project/production-stack: helm/values.yaml (servingEngineSpec.modelSpec.keda) and
         tutorials/20-keda-autoscaling.md; tutorials/assets/hpa-10.yaml with
         observability/prom-adapter.yaml (sum by(namespace) (vllm:num_requests_waiting)).

All with Kubernetes' own behaviour: up at once by 4 pods or 100 % in 15 s, down after 5 minutes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from serving.hpa import (
    GPU_UTILISATION,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    TTFT_MEAN,
    HpaSpec,
    Metric,
    MetricIdentifier,
    ObjectMetric,
    ObjectReference,
    Target,
    pods_metric,
    quantity,
)
from workbench.tune.point import JOIN, ORDERED, Point, seqs_name, target_name
from workbench.tune.space import SearchSpace
from workbench.tune.targets import TARGETS

ARTICLE: Mapping[str, float] = {GPU_UTILISATION: 70, TTFT_MEAN: 0.3}
QUEUE: Mapping[str, float] = {REQUESTS_WAITING: 5}
_STACK_WAITING = 1
"""In the whole fleet."""
RUNNING: Mapping[str, float] = {REQUESTS_RUNNING: 0.7}
"""Share of max_num_seqs."""
_OF_CAPACITY = (0.8, 0.6)
USUAL: Mapping[str, float] = {
    "warm_spares": 0,
    "result_cache_size": 0,
    "scale_up_window_s": 0,
    "scale_up_pods": 4,
    "scale_up_percent": 100,
    "scale_up_period_s": 15,
    "scale_up_tolerance": 0.1,
    "scale_down_window_s": 300,
    "scale_down_pods": 0,
    "scale_down_percent": 100,
    "scale_down_period_s": 15,
    "scale_down_tolerance": 0.1,
}
"""Kubernetes' own; of the engine's arguments the first choice, which is the engine's own."""
RULES: Mapping[str, Mapping[str, float]] = {"article": ARTICLE, "queue": QUEUE, "running": RUNNING}


def rule_hpa(rule: str, max_num_seqs: int, max_replicas: int) -> HpaSpec:
    """A rule of practice as it is deployed."""
    return HpaSpec(
        max_replicas=max_replicas,
        metrics=tuple(
            pods_metric(metric, target * (max_num_seqs if metric == REQUESTS_RUNNING else 1))
            for metric, target in RULES[rule].items()
        ),
    )


def queue_hpas(max_replicas: int) -> dict[str, HpaSpec]:
    """The queue-length rules as KEDA and the vLLM production stack deploy them, by name."""
    waiting = TARGETS[REQUESTS_WAITING]
    namespace = ObjectReference(api_version="v1", kind="Namespace", name="default")
    stack = ObjectMetric(
        described_object=namespace,
        metric=MetricIdentifier(name=REQUESTS_WAITING),
        target=Target(type="Value", value=quantity(_STACK_WAITING)),
    )
    metrics = {
        "keda-queue": waiting.metric(REQUESTS_WAITING, QUEUE[REQUESTS_WAITING], "External", 1),
        "vllm-stack-queue": Metric(type="Object", object=stack),
    }
    return {
        name: HpaSpec(max_replicas=max_replicas, metrics=(metric,))
        for name, metric in metrics.items()
    }


def first_points(
    space: SearchSpace, variant: str, max_num_seqs: int, peak_replicas: int, *, running: float
) -> Iterator[Point]:
    """Where to start: the rules, fleets of a fixed size from the peak's need upwards, and the capacity.

    The fixed ones are there so that a short search too has something that keeps the SLO. A point that
    the space does not hold is moved to the nearest that it does.

    Args:    variant: on which; the fastest.
             running: sequences that a replica runs at the highest rate that keeps the SLO.
    """
    assert space.min_replicas is not None
    assert space.max_replicas is not None
    low, high = space.min_replicas
    follows = (low, space.max_replicas[1])
    for targets in RULES.values():
        if tuple(targets) in space.metrics:
            yield _point(space, variant, max_num_seqs, targets, follows)
    middle = {
        name: (space.targets[name].low * space.targets[name].high) ** 0.5
        for name in space.metrics[0]
    }
    sizes = range(peak_replicas, high + 1, max(1, (high - peak_replicas) // 2))
    for size in sorted({min(max(n, low), high, space.max_replicas[1]) for n in sizes}):
        yield _point(space, variant, max_num_seqs, middle, (size, size))
    for share in _OF_CAPACITY if (REQUESTS_RUNNING,) in space.metrics else ():
        targets = {REQUESTS_RUNNING: share * running / max_num_seqs}
        yield _point(space, variant, max_num_seqs, targets, follows)


def _point(
    space: SearchSpace,
    variant: str,
    max_num_seqs: int,
    targets: Mapping[str, float],
    replicas: tuple[int, int],
) -> Point:
    zero = min(space.zero_choices(space.sources[0]))
    point: dict[str, Any] = {
        "variant": variant,
        seqs_name(variant): max_num_seqs,
        "metrics": JOIN.join(targets),
        "source": space.sources[0],
        "scale_to_zero": zero,
        "min_replicas": 0 if zero else replicas[0],
        "max_replicas": replicas[1],
    }
    for metric, target in targets.items():
        bounds = space.targets[metric]
        point[target_name(metric)] = min(max(target, bounds.low), bounds.high)
    for name in ORDERED:
        choices = getattr(space, name)
        usual = USUAL.get(name, choices[0])
        point[name] = min(choices, key=lambda choice: abs(choice - usual))
    return point
