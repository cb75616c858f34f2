"""How a new version replaces the old one: declared values, and the arithmetic of Kubernetes."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from serving.gateway.analysis import Analysis
from serving.values import Value

OLD, NEW = 0, 1
"""Versions of what is served."""

Amount = Annotated[int, Field(strict=True, ge=0)] | Annotated[str, Field(pattern=r"^\d+%$")]


class Recreate(Value):
    """Take all old pods away, then start the new ones: nobody serves meanwhile."""

    kind: Literal["recreate"] = "recreate"


class RollingUpdate(Value):
    """Replace pods some at a time; nobody looks at how the new ones do once they are ready.

    A minReadySeconds of 0, Kubernetes' default: a pod that is ready for a moment lets an old one go.

    Source:  apps/v1 Deployment, spec.strategy.rollingUpdate.
    """

    kind: Literal["rolling"] = "rolling"
    max_surge: Amount = "25%"
    """Pods beyond the replicas, as a number or as a share of them, rounded up."""
    max_unavailable: Amount = "25%"
    """Replicas that may be missing, rounded down."""

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if _scaled(self.max_surge, 1000, up=True) == 0 and (
            _scaled(self.max_unavailable, 1000, up=True) == 0
        ):
            raise ValueError(
                f"max_unavailable(={self.max_unavailable!r}) may not be 0 when max_surge is 0"
            )
        if isinstance(self.max_unavailable, str) and int(self.max_unavailable[:-1]) > 100:
            raise ValueError(f"max_unavailable(={self.max_unavailable!r}) must not be above 100%")
        return self

    def limits(self, replicas: int) -> tuple[int, int]:
        """(surge, unavailable) in pods. Where both come to 0 one may be unavailable.

        Source:  kubernetes pkg/controller/deployment/util ResolveFenceposts.
        """
        surge = _scaled(self.max_surge, replicas, up=True)
        unavailable = _scaled(self.max_unavailable, replicas, up=False)
        if surge == 0 and unavailable == 0:
            return 0, 1
        return surge, min(unavailable, replicas)

    def step(self, replicas: int, old: int, old_ready: int, new: int, new_ready: int) -> Sizes:
        """Pods of the old and of the new version from now on.

        First the new ones are made as far as the surge allows, then old ones taken: those that are
        not ready, and ready ones as far as enough remain ready.

        Args:    replicas: spec.replicas.
                 old, new: pods of each version that are not being deleted.
                 old_ready, new_ready: how many of them are Ready.
        Returns: (old, new)
        Source:  kubernetes pkg/controller/deployment: NewRSNewReplicas, reconcileOldReplicaSets,
                 cleanupUnhealthyReplicas, scaleDownOldReplicaSetsForRollingUpdate.
        """
        surge, unavailable = self.limits(replicas)
        if new > replicas:
            new = replicas
        elif old + new < replicas + surge:
            new += min(replicas + surge - old - new, replicas - new)
        least = replicas - unavailable
        removable = old + new - least - max(0, new - new_ready)
        if removable <= 0:
            return old, new
        kept = old - min(old - old_ready, removable)
        return kept - min(kept, max(0, old_ready + new_ready - least)), new


class BlueGreen(Value):
    """Start all of the new version beside the old one, then switch all traffic at once."""

    kind: Literal["blue-green"] = "blue-green"
    analysis: Analysis | None = None
    """After the switch, against the old version while the new one started; None looks at nothing."""
    keep_old_s: float = Field(30.0, ge=0)
    """The old pods are kept for so long after the switch and the analysis."""


class Canary(Value):
    """Send a share of the conversations to the new version, watch it, and go on or go back.

    Beside all old pods a share has so many new ones that none is more loaded than an old one:
    ceil(share / (1 - share) x replicas). With fewer a sound version would look slow.
    """

    kind: Literal["canary"] = "canary"
    share: float = Field(0.01, gt=0, lt=1)
    steps: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.1, 0.5)
    """The shares after the first, ascending; after the last all is switched."""
    analysis: Analysis = Analysis()

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if list(self.shares) != sorted(set(self.shares)):
            raise ValueError(f"steps(={list(self.steps)}) must ascend from share(={self.share})")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        return (self.share, *self.steps)

    def pods(self, share: float, replicas: int) -> int:
        return max(1, math.ceil(share / (1 - share) * replicas - 1e-9))


Strategy = Annotated[Recreate | RollingUpdate | BlueGreen | Canary, Field(discriminator="kind")]
Sizes = tuple[int, int]


class Release(Value):
    """A new version of what is served, and what is wrong with it."""

    at_s: float = Field(ge=0)
    """When it is rolled out."""
    strategy: Strategy
    slowdown: float = Field(1.0, gt=0)
    """Its steps take so many times as long."""
    error_share: float = Field(0.0, ge=0, le=1)
    """Of its requests that fail."""
    crashes_per_pod_hour: float = Field(0.0, ge=0)
    """Of its pods, beyond those of the cluster."""
    progress_deadline_s: float = Field(1800.0, gt=0)
    """Canary and blue-green go back where new pods are not ready by then; Kubernetes' own
    strategies only say so."""


def _scaled(amount: int | str, replicas: int, *, up: bool) -> int:
    """A number, or a percentage of the replicas."""
    if isinstance(amount, int):
        return amount
    percent = int(amount[:-1]) * replicas
    return -(-percent // 100) if up else percent // 100
