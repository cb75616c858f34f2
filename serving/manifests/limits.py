"""What cannot be shipped: refused here with a reason, rather than by the API server or not at all.

A schema knows field names and types only. What the API server refuses of an autoscaler, `HpaSpec` does.
"""

from __future__ import annotations

from serving.errors import BundleError
from serving.plan import Plan


def refuse_what_cannot_run(plan: Plan) -> None:
    """Check a plan against what a cluster takes and runs as it was simulated.

    Raises:  BundleError: the first thing that cannot be shipped.
    """
    if plan.name.endswith("-"):
        raise BundleError(
            f"name(={plan.name!r}) names no Kubernetes object",
            remedy="End it with a letter or a digit.",
        )
    if plan.warm_spares:
        raise BundleError(
            f"warm_spares(={plan.warm_spares}) cannot be shipped: Kubernetes has no standby pods",
            remedy="Tune with warm_spares fixed at 0; a higher minReplicas is what can be had.",
        )
    if plan.gpus_per_replica > 1:
        raise BundleError(
            f"gpus_per_replica(={plan.gpus_per_replica}) cannot be shipped: the engine's arguments"
            " spread no model over GPUs, vLLM would leave all but one idle",
            remedy="Use one GPU for each replica.",
        )
    if plan.hpa is not None and plan.hpa.min_replicas == 0:
        raise BundleError(
            "min_replicas(=0) is refused by Kubernetes before 1.37 unless gate HPAScaleToZero is open",
            remedy="Use at least 1.",
        )
