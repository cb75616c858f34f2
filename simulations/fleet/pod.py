"""One pod: what is known of it, and what can happen to it from outside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import simpy

from simulations.control import PodStatus
from simulations.fleet.nodes import Node

Hit = Literal["deleted", "crash", "OOM", "node lost"]


@dataclass(eq=False)
class Pod:
    """One replica from its creation to its deletion."""

    number: int
    version: int
    created_s: float
    phase: Literal["Pending", "Running"] = "Pending"
    node: Node | None = None
    """Where it has its GPUs, which it keeps until it is gone."""
    bound_s: float = np.inf
    started_s: float | None = None
    """When its container started, the first time."""
    row: int = -1
    """Its row in the data plane; -1 while it does not serve."""
    ready: bool = False
    """Its Ready condition; of a lost node it is behind the truth."""
    ready_changed_s: float = 0.0
    ready_s: float = np.inf
    """Since when it has been serving."""
    dying: bool = False
    """Struck by what its process has yet to hear of: it dies once."""
    deleted: bool = False
    deadline_s: float = np.inf
    """When what is left of a deleted pod is killed."""
    gone_s: float = np.inf
    restarts: int = 0
    backoff_s: float = 0.0
    restarted_s: float = -np.inf
    served_before_s: float = 0.0
    """Before its last restart."""
    process: simpy.Process | None = field(default=None, repr=False)

    def status(self) -> PodStatus:
        """As the API server has it."""
        return PodStatus(
            self.number,
            self.phase,
            self.ready,
            self.started_s,
            self.ready_changed_s,
            self.deleted,
        )

    @property
    def loading(self) -> bool:
        """Whether it runs and its server does not answer: it has GPUs that do nothing."""
        return self.row < 0 and self.phase == "Running" and self.node is not None and self.node.up

    def served_s(self, until_s: float) -> float:
        return self.served_before_s + max(0.0, until_s - min(self.ready_s, until_s))

    def crash(self, how: Literal["crash", "OOM"]) -> None:
        """Its container dies; nothing where it does not serve."""
        if self.row >= 0 and not self.deleted and not self.dying:
            self.dying = True
            self._hit(how)

    def lose_node(self) -> None:
        """Its node is gone, and it with it."""
        self.dying = True
        self._hit("node lost")

    def delete(self, deadline_s: float = np.inf) -> None:
        """It takes no more requests, and is killed at the deadline or at the end of its grace."""
        self.deleted = True
        self.deadline_s = min(self.deadline_s, deadline_s)
        self._hit("deleted")

    def _hit(self, how: Hit) -> None:
        if self.process is not None and self.process.is_alive:
            self.process.interrupt(how)
