"""A spec made ready for many passes."""

from __future__ import annotations

from dataclasses import dataclass

from serving.hpa import HpaSpec, Metric, ScalingRules, approximate
from simulations.autoscaler.behavior import Rules
from simulations.autoscaler.options import Options
from simulations.autoscaler.values import Tolerances


@dataclass(frozen=True)
class Compiled:
    """A spec with its defaults filled in, for many passes."""

    spec: HpaSpec
    options: Options
    metrics: tuple[Metric, ...]
    tolerances: Tolerances
    up: Rules
    down: Rules

    @classmethod
    def of(cls, spec: HpaSpec, options: Options | None = None) -> Compiled:
        """Prepare a spec."""
        options = options or Options()
        up = spec.behavior.scale_up if spec.behavior else None
        down = spec.behavior.scale_down if spec.behavior else None
        one = options.events_of_one_direction
        return cls(
            spec=spec,
            options=options,
            metrics=spec.effective_metrics,
            tolerances=Tolerances(
                _tolerance(down, options), _tolerance(up, options), options.tolerance_as_distance
            ),
            up=Rules.up(up, one_direction=one),
            down=Rules.down(down, options.downscale_window_s, one_direction=one),
        )

    @property
    def from_outside(self) -> bool:
        """Whether a metric is there even without pods."""
        return any(metric.type in ("Object", "External") for metric in self.metrics)


def _tolerance(rules: ScalingRules | None, options: Options) -> float:
    own = rules.tolerance if rules is not None and options.configurable_tolerance else None
    return options.tolerance if own is None else approximate(own)
