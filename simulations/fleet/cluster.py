"""What a plan runs on: the delays of its control loops, its machines, and what goes wrong."""

from __future__ import annotations

import math

from pydantic import Field, model_validator

from serving.manifests.vllm import PRE_STOP_S, SHUTDOWN_S
from serving.values import Value
from simulations.fleet.faults import Faults
from simulations.fleet.nodes import NodePool
from simulations.metrics.pipeline import Pipeline

_ROUNDING = 1e-9


class ReadinessProbe(Value):
    """How the kubelet notices that a server answers: a probe every period from the start.

    Source:  Kubernetes, "Configure Liveness, Readiness and Startup Probes"; the first probe comes
             when the container has started, kubelet/prober/worker.go.
    """

    initial_delay_s: float = Field(0.0, ge=0)
    period_s: float = Field(10.0, gt=0)
    success_threshold: int = Field(1, ge=1)

    def ready_after_s(self, answers_after_s: float) -> float:
        """Seconds from the container's start to Ready, where its server answers after so many."""
        late = (answers_after_s - self.initial_delay_s) / self.period_s
        first = max(0, math.ceil(late - _ROUNDING))
        return self.initial_delay_s + (first + self.success_threshold - 1) * self.period_s


class Termination(Value):
    """How a deleted pod goes. It takes no new requests from its deletion on.

    The defaults are those of the exported bundle: the sleep, and what vLLM then has for streams.
    """

    pre_stop_s: float = Field(PRE_STOP_S, ge=0)
    """The least time that it stays, whatever it holds."""
    grace_s: float | None = Field(PRE_STOP_S + SHUTDOWN_S, ge=0)
    """From the deletion: requests that are left then fail. None waits for the last."""


class Activation(Value):
    """Scale to zero and back as KEDA does it for a minReplicaCount of 0.

    A poll that finds requests at the gateway, in a replica, or sent since the last poll is active:
    it starts the first replica. Without an active poll for the cooldown all are taken away.

    Source:  kedacore/keda pkg/scaling/executor/scale_scaledobjects.go, pollingInterval and
             cooldownPeriod with their defaults.
    """

    polling_s: float = Field(30.0, gt=0)
    cooldown_s: float = Field(300.0, ge=0)


class Cluster(Value):
    """What a plan runs on: the delays of its control loops, and how many GPUs there are."""

    sync_period_s: float = Field(15.0, gt=0)
    """Between two reconciles of the autoscaler; their phase is drawn from the seed."""
    metrics: Pipeline = Pipeline()
    """From the pods to the autoscaler: exporter, scrapes, adapter; their phases are drawn too."""
    max_gpus: int | None = Field(None, ge=1)
    """Pods beyond this stay Pending until a GPU is given back; None is no limit."""
    nodes: NodePool | None = None
    """The machines, where they matter; None gives every pod its GPUs at once, and bills pods."""
    readiness: ReadinessProbe | None = None
    """None: a pod is ready as soon as its server answers."""
    termination: Termination = Termination(pre_stop_s=0.0, grace_s=None)
    activation: Activation | None = None
    """Scale to zero of a plan with an autoscaler; None leaves it to the autoscaler."""
    faults: Faults = Faults()
    initial_replicas: int | None = Field(None, ge=0)
    """Replicas ready at the start under an autoscaler; None is its minimum."""
    grace_s: float = Field(600.0, ge=0)
    """After the end of the traffic, for requests that are still in the fleet."""

    @model_validator(mode="after")
    def _one_limit(self) -> Cluster:
        if self.max_gpus is not None and self.nodes is not None:
            raise ValueError(
                f"max_gpus(={self.max_gpus}) must be None where nodes say how many there are"
            )
        return self
