"""One pass of the controller: proposals, the largest of them, stabilization, limits, the write.

Source:  horizontal.go (reconcileAutoscaler), v1.37, with the older rules by `Options`.
"""

from __future__ import annotations

from collections.abc import Sequence

from serving.hpa import HpaSpec
from simulations.autoscaler import behavior
from simulations.autoscaler.behavior import Recommendation
from simulations.autoscaler.compiled import Compiled
from simulations.autoscaler.decision import Decision, State
from simulations.autoscaler.proposals import Failure, Seen, combined
from simulations.autoscaler.selectors import is_selector
from simulations.autoscaler.status import (
    LIMIT_MESSAGES,
    STABILIZED_MESSAGES,
    Condition,
    Conditions,
    Event,
    MetricStatus,
    is_true,
    with_condition,
    without_condition,
)
from simulations.autoscaler.values import Metrics, Pod


def reconcile(
    compiled: Compiled,
    state: State,
    *,
    now_s: float,
    current: int,
    status_replicas: int,
    pods: Sequence[Pod],
    metrics: Metrics,
    selector: str = "app=workload",
    rivals: Sequence[str] = (),
    read_fails: bool = False,
    write_fails: bool = False,
) -> Decision:
    """Decide the size of the workload.

    Args:    current: spec.replicas of the scale.
             status_replicas: status.replicas of the scale, for AverageValue of Object and External.
             selector: of the scale, as text.
             rivals: other HPAs that select one of the pods; any stops this one.
             read_fails, write_fails: whether the scale can be neither read nor changed.
    Returns: Decision; `state` is what the next pass needs. The state that was given is left alone.
    """
    this = _Pass(compiled, state, now_s)
    if read_fails:
        message = "the HPA controller was unable to get the target's current scale"
        this.set("AbleToScale", False, "FailedGetScale", message)
        this.event("FailedGetScale", message)
        return this.done(current, errors=("FailedGetScale",))
    message = "the HPA controller was able to get the target's current scale"
    this.set("AbleToScale", True, "SucceededGetScale", message)
    if this.log is None:
        this.log = (Recommendation(current, now_s),)
    if current == 0 and not _looked_at_from_zero(compiled, state.conditions):
        return this.disabled()
    bound, why = _bound(compiled.spec, current)
    if bound != current:
        return this.write(current, bound, why, write_fails)
    if not this.selected(selector, rivals):
        return this.done(current, errors=("FailedComputeMetricsReplicas",))
    tolerances, options = compiled.tolerances, compiled.options
    desired, why = this.wanted(
        Seen(now_s, current, status_replicas, pods, metrics, tolerances, options)
    )
    if desired == current:
        return this.done(current)
    return this.write(current, desired, why, write_fails)


def _bound(spec: HpaSpec, current: int) -> tuple[int, str]:
    """Where a size that is out of bounds goes at once, past metrics, windows and policies."""
    if current > spec.max_replicas:
        return spec.max_replicas, "Current number of replicas above Spec.MaxReplicas"
    if 0 < current < spec.min_replicas:
        return spec.min_replicas, "Current number of replicas below Spec.MinReplicas"
    return current, ""


def _looked_at_from_zero(compiled: Compiled, conditions: Conditions) -> bool:
    """Whether a workload at 0 replicas may grow again: who brought it to 0 decides."""
    options, least = compiled.options, compiled.spec.min_replicas
    if not options.scaled_to_zero_condition:
        return least == 0
    ours = options.scale_to_zero and is_true(conditions, "ScaledToZero")
    return ours and (least != 0 or compiled.from_outside)


class _Pass:
    """One pass as it goes: collects conditions and events, and is then thrown away."""

    def __init__(self, compiled: Compiled, state: State, now_s: float) -> None:
        self.compiled = compiled
        self.now_s = now_s
        self.log, self.ups, self.downs = state.log, state.ups, state.downs
        self.conditions = state.conditions
        self.events: list[Event] = []
        self.errors: list[str] = []
        self.statuses: tuple[MetricStatus | None, ...] = ()
        self._scaled_to_zero = is_true(state.conditions, "ScaledToZero")

    def set(self, kind: str, status: bool, reason: str, message: str) -> None:
        new = Condition(kind, status, reason, message, self.now_s)
        self.conditions = with_condition(self.conditions, new)

    def forget(self, kind: str) -> None:
        self.conditions = without_condition(self.conditions, kind)

    def event(self, reason: str, message: str) -> None:
        self.events.append(Event(reason, message))

    def done(
        self,
        desired: int,
        *,
        scaled: bool = False,
        why: str = "",
        errors: tuple[str, ...] = (),
    ) -> Decision:
        return Decision(
            desired=desired,
            state=State(self.log, self.ups, self.downs, self.conditions),
            scaled=scaled,
            rescale_reason=why,
            errors=(*self.errors, *errors),
            events=tuple(self.events),
            metrics=self.statuses,
        )

    def disabled(self) -> Decision:
        message = "scaling is disabled since the replica count of the target is zero"
        self.set("ScalingActive", False, "ScalingDisabled", message)
        options = self.compiled.options
        if options.scaled_to_zero_condition and not options.scale_to_zero:
            self.forget("ScaledToZero")
        return self.done(0)

    def selected(self, selector: str, rivals: Sequence[str]) -> bool:
        """Whether the pods can be told, and are nobody else's."""
        if not selector:
            self.event("SelectorRequired", "selector is required")
            message = "the HPA target's scale is missing a selector"
            self.set("ScalingActive", False, "InvalidSelector", message)
        elif not is_selector(selector):
            message = f"couldn't convert selector {selector!r} into a selector object"
            self.event("InvalidSelector", message)
            self.set("ScalingActive", False, "InvalidSelector", message)
        elif rivals:
            message = f"pods by selector {selector} are controlled by more than one HPA"
            message = f"{message} (e.g. {', '.join(rivals)})"
            self.event("AmbiguousSelector", message)
            self.set("ScalingActive", False, "AmbiguousSelector", message)
        else:
            return True
        self.event("FailedComputeMetricsReplicas", message if selector else "selector is required")
        return False

    def wanted(self, seen: Seen) -> tuple[int, str]:
        """What the metrics ask for, within what is allowed, and why; the current size if they fail."""
        proposal = combined(self.compiled.metrics, seen)
        self.statuses = proposal.statuses
        for failure in proposal.failures:
            self.event(failure.reason, failure.message)
            self.errors.append(failure.reason)
        if proposal.count is None:
            self._lost(proposal.failures, len(self.compiled.metrics))
            return seen.current, ""
        message = "the HPA was able to successfully calculate a replica count from"
        self.set("ScalingActive", True, "ValidMetricFound", f"{message} {proposal.metric}")
        raw = max(proposal.count, 0)
        why = f"{proposal.metric} above target" if raw > seen.current else ""
        why = "All metrics below target" if raw < seen.current else why
        desired = self._limited(seen.current, raw)
        least = self.compiled.spec.min_replicas
        if seen.current == 0 and self._scaled_to_zero and desired < least:
            why = why or "Current number of replicas below Spec.MinReplicas"
            desired = least
        return desired, why

    def _lost(self, failures: Sequence[Failure], count: int) -> None:
        first = failures[0]
        message = f"the HPA was unable to compute the replica count: {first.message}"
        self.set("ScalingActive", False, first.reason, message)
        self.event(
            "FailedComputeMetricsReplicas",
            f"invalid metrics ({len(failures)} invalid out of {count}), first error is:"
            f" {first.message}",
        )

    def _limited(self, current: int, raw: int) -> int:
        """Stabilize, store what was asked for, limit; by spec.behavior where there is one."""
        spec, options = self.compiled.spec, self.compiled.options
        up, down = self.compiled.up, self.compiled.down
        log = self.log or ()
        bounds = (spec.min_replicas, spec.max_replicas)
        if spec.behavior is None:
            stable, self.log = behavior.stabilize_legacy(
                log, raw, self.now_s, options.downscale_window_s
            )
            factors = (options.legacy_up_factor, options.legacy_up_minimum)
            desired, reason = behavior.legacy_limits(current, stable, *bounds, *factors)
            held = "ScaleDownStabilized"
        else:
            windows = (up.window_s, down.window_s)
            stable, self.log = behavior.stabilize(log, raw, current, self.now_s, *windows)
            desired, reason = behavior.rate_limit(
                current,
                stable,
                *bounds,
                ups=self.ups,
                downs=self.downs,
                up=up,
                down=down,
                now_s=self.now_s,
            )
            held = "ScaleUpStabilized" if raw >= current else "ScaleDownStabilized"
        able = held if stable != raw else "ReadyForNewScale"
        self.set("AbleToScale", True, able, STABILIZED_MESSAGES[able])
        self.set("ScalingLimited", desired != stable, reason, LIMIT_MESSAGES[reason])
        return desired

    def write(self, current: int, desired: int, why: str, fails: bool) -> Decision:
        """Set the new size; what was written is remembered as an event of the policies."""
        size = f"New size: {desired}; reason: {why}"
        if fails:
            message = "the HPA controller was unable to update the target scale"
            self.event("FailedRescale", f"{size}; error: {message}")
            self.set("AbleToScale", False, "FailedUpdateScale", message)
            return self.done(current, errors=("FailedUpdateScale",))
        message = f"the HPA controller was able to update the target scale to {desired}"
        self.set("AbleToScale", True, "SucceededRescale", message)
        self.event("SuccessfulRescale", size)
        if self.compiled.spec.behavior is not None:
            self._remember(desired - current)
        if self.compiled.options.scaled_to_zero_condition:
            self._note_zero(current, desired)
        return self.done(desired, scaled=True, why=why)

    def _remember(self, change: int) -> None:
        if change > 0:
            self.ups = behavior.stored(self.ups, change, self.compiled.up, self.now_s)
        else:
            self.downs = behavior.stored(self.downs, -change, self.compiled.down, self.now_s)

    def _note_zero(self, current: int, desired: int) -> None:
        compiled = self.compiled
        if not compiled.options.scale_to_zero:
            self.forget("ScaledToZero")
        elif 0 == desired < current and compiled.spec.min_replicas == 0 and compiled.from_outside:
            message = "the HPA controller scaled the workload to zero"
            self.set("ScaledToZero", True, "ScaledToZero", message)
        else:
            message = "the HPA controller did not scale the workload to zero"
            self.set("ScaledToZero", False, "NotScaledToZero", message)
