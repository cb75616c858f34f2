"""One pass of the controller: proposals, the largest of them, stabilization, limits, the write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from serving.errors import InputError
from serving.hpa import HpaSpec, Metric, Target, milli
from simulations.autoscaler import behavior
from simulations.autoscaler.behavior import Events, Log, Recommendation, Rules
from simulations.autoscaler.calculator import Tolerances, per_pod, total_average, total_value
from simulations.autoscaler.values import MetricError, Metrics, Options, Pod


@dataclass(frozen=True, slots=True)
class State:
    """What the controller remembers between passes; a restart forgets it."""

    log: Log | None = None
    """None: nothing recorded yet, so the current size is recorded first, which blocks a scale-down for
    the whole window."""
    ups: Events = ()
    downs: Events = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of a pass: replicas to write (the current ones where nothing changes), and why."""

    desired: int
    state: State
    scaled: bool
    reason: str
    errors: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Compiled:
    """A spec with its quantities parsed and its defaults filled in, for many passes."""

    spec: HpaSpec
    options: Options
    tolerances: Tolerances
    up: Rules
    down: Rules

    @classmethod
    def of(cls, spec: HpaSpec, options: Options | None = None) -> Compiled:
        """Prepare a spec.

        Raises:  InputError: a Resource metric, which no GPU has.
        """
        options = options or Options()
        for metric in spec.metrics:
            if metric.type == "Resource":
                raise InputError(
                    "metric type 'Resource' carries cpu and memory only",
                    remedy="Use a Pods or External metric with an adapter rule behind it.",
                )
        up = spec.behavior.scale_up if spec.behavior else None
        down = spec.behavior.scale_down if spec.behavior else None
        tolerances = [
            milli(rules.tolerance) / 1000 if rules and rules.tolerance else options.tolerance
            for rules in (down, up)
        ]
        return cls(
            spec=spec,
            options=options,
            tolerances=(tolerances[0], tolerances[1]),
            up=Rules.up(up),
            down=Rules.down(down, options.downscale_window_s),
        )


def reconcile(
    compiled: Compiled,
    state: State,
    *,
    now_s: float,
    current: int,
    status_replicas: int,
    pods: Sequence[Pod],
    metrics: Metrics,
) -> Decision:
    """Decide the size of the workload.

    Args:    current: spec.replicas of the scale.
             status_replicas: status.replicas of the scale, for AverageValue of Object and External.
    Returns: Decision; `state` is the controller's memory for the next pass.
    """
    spec = compiled.spec
    if state.log is None:
        state = replace(state, log=(Recommendation(current, now_s),))
    errors: tuple[str, ...] = ()
    reason = "DesiredWithinRange"
    if current == 0 and spec.min_replicas != 0:
        return Decision(current, state, False, "ScalingDisabled")
    if current > spec.max_replicas:
        desired, reason = spec.max_replicas, "TooManyReplicas"
    elif current < spec.min_replicas:
        desired, reason = spec.min_replicas, "TooFewReplicas"
    else:
        proposal, errors, failure = _proposal(compiled, current, status_replicas, pods, metrics)
        if failure is not None:
            return Decision(current, state, False, failure, errors)
        desired, reason, state = _limited(compiled, state, current, proposal, now_s)
    if desired == current:
        return Decision(current, state, False, reason, errors)
    if spec.behavior is not None:
        state = _remember(compiled, state, desired - current, now_s)
    return Decision(desired, state, True, reason, errors)


def _proposal(
    compiled: Compiled, current: int, status: int, pods: Sequence[Pod], metrics: Metrics
) -> tuple[int, tuple[str, ...], str | None]:
    """The largest valid proposal; a failure where all fail, or some fail and it would scale down."""
    best = 0
    reasons: list[str] = []
    for metric in compiled.spec.metrics:
        try:
            best = max(
                best, _of_metric(metric, current, status, pods, metrics, compiled.tolerances)
            )
        except MetricError as error:
            reasons.append(error.reason)
    if len(reasons) == len(compiled.spec.metrics) or (reasons and best < current):
        return current, tuple(reasons), reasons[0]
    return best, tuple(reasons), None


def _of_metric(
    metric: Metric,
    current: int,
    status: int,
    pods: Sequence[Pod],
    metrics: Metrics,
    tolerances: Tolerances,
) -> int:
    if metric.pods is not None:
        values = metrics.pods.get(metric.pods.metric.name)
        if not values:
            raise MetricError("FailedGetPodsMetric", "no metrics returned from custom metrics API")
        target = milli(metric.pods.target.average_value or "0")
        return per_pod(current, pods, values, target, tolerances)
    if metric.object is not None:
        usage = metrics.objects.get(metric.object.metric.name)
        if usage is None:
            raise MetricError("FailedGetObjectMetric", "no value of the object")
        return _total(metric.object.target, current, status, pods, usage, tolerances)
    assert metric.external is not None
    series = metrics.external.get(metric.external.metric.name)
    if not series:
        raise MetricError("FailedGetExternalMetric", "no series of the external metric")
    return _total(metric.external.target, current, status, pods, sum(series), tolerances)


def _total(
    target: Target,
    current: int,
    status: int,
    pods: Sequence[Pod],
    usage: int,
    tolerances: Tolerances,
) -> int:
    if target.type == "Value":
        return total_value(current, pods, usage, milli(target.value or "0"), tolerances)
    return total_average(status, usage, milli(target.average_value or "0"), tolerances)


def _limited(
    compiled: Compiled, state: State, current: int, proposal: int, now_s: float
) -> tuple[int, str, State]:
    spec, options = compiled.spec, compiled.options
    log = state.log or ()
    if spec.behavior is None:
        stable, log = behavior.stabilize_legacy(log, proposal, now_s, options.downscale_window_s)
        desired, reason = behavior.legacy_limits(
            current,
            stable,
            spec.min_replicas,
            spec.max_replicas,
            options.legacy_up_factor,
            options.legacy_up_minimum,
        )
        return desired, reason, replace(state, log=log)
    windows = (compiled.up.window_s, compiled.down.window_s)
    stable, log = behavior.stabilize(log, proposal, current, now_s, *windows)
    desired, reason = behavior.rate_limit(
        current,
        stable,
        spec.min_replicas,
        spec.max_replicas,
        ups=state.ups,
        downs=state.downs,
        up=compiled.up,
        down=compiled.down,
        now_s=now_s,
    )
    return desired, reason, replace(state, log=log)


def _remember(compiled: Compiled, state: State, change: int, now_s: float) -> State:
    if change > 0:
        return replace(state, ups=behavior.stored(state.ups, change, compiled.up, now_s))
    return replace(state, downs=behavior.stored(state.downs, -change, compiled.down, now_s))
