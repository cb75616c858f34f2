"""What may be served: a variant with the latency model that was fitted to it."""

from __future__ import annotations

from pydantic import model_validator

from serving.plan import Variant
from serving.values import Value
from simulations.latency import LatencyModel


class Candidate(Value):
    """A variant that may be served, and how fast it is."""

    variant: Variant
    latency: LatencyModel

    @model_validator(mode="after")
    def _belong_together(self) -> Candidate:
        if self.latency.variant != self.variant.name:
            raise ValueError(
                f"latency is of {self.latency.variant!r}, not of {self.variant.name!r}"
            )
        return self
