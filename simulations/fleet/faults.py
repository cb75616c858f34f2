"""What goes wrong with pods, and how the kubelet restarts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import simpy
from pydantic import Field

from serving.values import Value
from simulations.fleet.nodes import Process

if TYPE_CHECKING:
    from simulations.fleet.pods import Pods

_FIRST_BACKOFF_S = 10.0
_LONGEST_BACKOFF_S = 300.0


class Faults(Value):
    """Crashes and OOM kills of containers; nodes are lost by their NodePool.

    A container that dies fails the requests that it holds and starts again on its node.
    """

    crashes_per_pod_hour: float = Field(0.0, ge=0)
    """Of a ready pod."""
    crash_at_s: tuple[float, ...] = ()
    """At each, the pod that has been ready longest crashes."""
    oom_at_s: tuple[float, ...] = ()
    """At each, the ready pod with the fullest KV cache is killed."""
    oom_kv_usage: float | None = Field(None, gt=0, le=1)
    """A pod whose KV cache is found this full is killed: memory that was promised twice."""
    oom_look_s: float = Field(5.0, gt=0)
    """Between two looks at that."""


def crash_loop(backoff_s: float, restarted_s: float, crashed_s: float) -> tuple[float, float]:
    """How long the kubelet waits before a restart, and its back-off for the next one.

    The first restart is immediate, the next wait 10, 20, 40 ... 300 s. A container that ran for
    more than ten minutes since its last restart starts afresh.

    Args:    backoff_s: what this function said last; 0 at first.
             restarted_s: when the container was last restarted; -inf at first.
    Returns: (seconds from the crash, back-off).
    Source:  kubernetes pkg/kubelet/kuberuntime doBackOff; client-go util/flowcontrol/backoff.go
             (an entry expires after twice the longest back-off).
    """
    if crashed_s - restarted_s > 2 * _LONGEST_BACKOFF_S:
        return 0.0, _FIRST_BACKOFF_S
    return backoff_s, min(2 * backoff_s, _LONGEST_BACKOFF_S)


def inject(env: simpy.Environment, faults: Faults, pods: Pods) -> None:
    """Start the processes of the faults that are not drawn with the pods."""
    for at_s in faults.crash_at_s:
        env.process(_crash_at(env, at_s, pods))
    for at_s in faults.oom_at_s:
        env.process(_kill_at(env, at_s, pods))
    if faults.oom_kv_usage is not None:
        env.process(_watch_memory(env, faults.oom_kv_usage, faults.oom_look_s, pods))


def _crash_at(env: simpy.Environment, at_s: float, pods: Pods) -> Process:
    yield env.timeout(at_s)
    for pod in pods.ready()[:1]:
        pod.crash("crash")


def _kill_at(env: simpy.Environment, at_s: float, pods: Pods) -> Process:
    yield env.timeout(at_s)
    usage = pods.kv_usage()
    if usage:
        # The first of equals: the one that has been ready longest.
        max(usage, key=lambda pod: usage[pod]).crash("OOM")


def _watch_memory(env: simpy.Environment, limit: float, look_s: float, pods: Pods) -> Process:
    while True:
        yield env.timeout(look_s)
        for pod, usage in pods.kv_usage().items():
            if usage >= limit:
                pod.crash("OOM")
