"""What a pass comes to, and what the next one needs of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulations.autoscaler.behavior import Events, Log
from simulations.autoscaler.status import Conditions, Event, MetricStatus


@dataclass(frozen=True, slots=True)
class State:
    """What is kept between passes: the controller's memory, and the conditions in the HPA's status."""

    log: Log | None = None
    """None: nothing recorded yet, so the current size is recorded first, which blocks a scale-down for
    the whole window."""
    ups: Events = ()
    downs: Events = ()
    conditions: Conditions = ()

    def restarted(self) -> State:
        """What a new controller finds: the status, and no memory."""
        return State(conditions=self.conditions)


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of a pass: replicas to write (the current ones where nothing changes), and why."""

    desired: int
    state: State
    scaled: bool
    rescale_reason: str = ""
    """Of a change, as its event says it: 'pods metric qps above target'."""
    errors: tuple[str, ...] = field(default=())
    """What the pass reports as failed, though it may have scaled: reasons of metrics first."""
    events: tuple[Event, ...] = field(default=())
    metrics: tuple[MetricStatus | None, ...] = field(default=())
    """By metric of the spec; None where it failed. Empty where metrics were not looked at."""

    @property
    def conditions(self) -> Conditions:
        """The HPA's conditions after the pass."""
        return self.state.conditions

    @property
    def reason(self) -> str:
        """The one word that tells most: why not active, what limited or stabilized it, or how it went."""
        by_type = {known.type: known for known in self.conditions}
        able = by_type.get("AbleToScale")
        active, limited = by_type.get("ScalingActive"), by_type.get("ScalingLimited")
        if able is not None and not able.status:
            return able.reason
        if active is not None and not active.status and not self.scaled:
            return active.reason
        if limited is not None and limited.status and self.metrics:
            return limited.reason
        return "" if able is None else able.reason
