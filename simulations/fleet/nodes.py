"""The machines under the pods: packing, provisioning, removal, and their loss.

A pod waits for GPUs in order of its creation. It gets the fullest node that has room (or the
emptiest, see `packing`); of equals, the oldest.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import simpy
from pydantic import Field

from serving.errors import InputError
from serving.values import Value
from simulations.fleet.streams import Streams

if TYPE_CHECKING:
    from simulations.fleet.pod import Pod

Process = Generator[simpy.Event, Any, None]


class NodePool(Value):
    """Machines of one kind under a cluster autoscaler. Their GPU hours are what is paid.

    An order covers the pods that found no node, less the room of what is on order already. A node is
    paid from its order to its end.

    Source:  kubernetes/autoscaler cluster-autoscaler FAQ: scan-interval 10 s,
             scale-down-unneeded-time 10 min; NodeResourcesFit, scoringStrategy; node lifecycle
             controller: node-monitor-grace-period, tolerationSeconds 300 of
             node.kubernetes.io/unreachable.
    """

    gpus_per_node: int = Field(8, ge=1)
    initial_nodes: int | None = Field(None, ge=0)
    """Ready at the start; None is as many as the pods at the start need."""
    min_nodes: int = Field(0, ge=0)
    """Kept although they are empty."""
    max_nodes: int | None = Field(None, ge=1)
    """None lets the pool grow without limit."""
    provision_s: float = Field(180.0, ge=0)
    """From the order of a node to pods on it: machine, drivers, device plugin."""
    scan_s: float = Field(10.0, ge=0)
    """From a pod that finds no node to the order of one."""
    idle_s: float = Field(600.0, ge=0)
    """An empty node is removed after so long."""
    packing: Literal["most_allocated", "least_allocated"] = "most_allocated"
    losses_per_node_hour: float = Field(0.0, ge=0)
    loss_at_s: tuple[float, ...] = ()
    """At each, the node with the most pods is lost."""
    unreachable_s: float = Field(50.0, ge=0)
    """From a loss to its pods no longer being Ready for the API server. The gateway is faster: it
    sends nothing more to a replica whose connections broke."""
    evict_s: float = Field(300.0, ge=0)
    """From then to their deletion, when others are made in their place."""
    reclaims_per_node_hour: float = Field(0.0, ge=0)
    """Of spot machines."""
    reclaim_at_s: tuple[float, ...] = ()
    """At each, the node with the most pods is reclaimed."""
    notice_s: float = Field(120.0, ge=0)
    """From a reclaim's notice, when its pods are deleted, to the end of the machine."""


@dataclass(eq=False)
class Node:
    """One machine from its order to its end."""

    number: int
    gpus: int
    ordered_s: float
    pods: list[Pod] = field(default_factory=list)
    warm: set[tuple[str, int]] = field(default_factory=set)
    """What it keeps of a version: its image, its weights, what was compiled."""
    up: bool = False
    cordoned: bool = False
    """Reclaimed: takes no more pods."""
    empty_since_s: float = 0.0
    gone_s: float = np.inf


class Nodes:
    """All machines of a run; without a pool each pod has one of its own while it lasts."""

    def __init__(
        self,
        env: simpy.Environment,
        pool: NodePool | None,
        gpus_per_pod: int,
        *,
        max_gpus: int | None,
        streams: Streams,
    ) -> None:
        if pool is not None and pool.gpus_per_node < gpus_per_pod:
            raise InputError(
                f"gpus_per_replica(={gpus_per_pod}) must be <="
                f" gpus_per_node(={pool.gpus_per_node})",
                remedy="Take larger nodes; a replica over several nodes is not simulated.",
            )
        self._env = env
        self._pool = pool
        self._per_pod = gpus_per_pod
        self._max_gpus = max_gpus
        self._streams = streams
        self._waiting: list[tuple[Pod, simpy.Event]] = []
        self._scanning = False
        self._made = 0
        self.nodes: list[Node] = []
        self.gone: list[Node] = []

    def start(self, pods: int) -> None:
        """The nodes that are there at the beginning, with so many pods to come."""
        pool = self._pool
        if pool is None:
            return
        asked = pool.initial_nodes
        count = -(-pods // self._per_node) if asked is None else asked
        for _ in range(count if pool.max_nodes is None else min(count, pool.max_nodes)):
            self._join(self._new(pool.gpus_per_node))
        for times_s, ends in ((pool.loss_at_s, self._lost), (pool.reclaim_at_s, self._reclaimed)):
            for at_s in times_s:
                self._env.process(self._fullest_at(at_s, ends))

    # -- pods ------------------------------------------------------------------------------------

    def place(self, pod: Pod) -> simpy.Event:
        """An event for when the pod has its GPUs: `pod.node` is set then."""
        placed = self._env.event()
        self._waiting.append((pod, placed))
        self._serve()
        return placed

    def leave(self, pod: Pod) -> None:
        """The pod is gone: its GPUs are free, or it waits no longer."""
        node = pod.node
        if node is None:
            self._waiting = [(p, placed) for p, placed in self._waiting if p is not pod]
            return
        node.pods.remove(pod)
        if self._pool is None:
            self._end(node)
        elif not node.pods and node.up:
            node.empty_since_s = self._env.now
            self._env.process(self._remove_if_idle(node, self._pool))
        self._serve()

    def held_s(self, until_s: float) -> float:
        """GPU seconds to be paid until then."""
        return sum(
            node.gpus * max(0.0, min(node.gone_s, until_s) - min(node.ordered_s, until_s))
            for node in self.nodes + self.gone
        )

    @property
    def _per_node(self) -> int:
        assert self._pool is not None
        return self._pool.gpus_per_node // self._per_pod

    def _serve(self) -> None:
        """Give waiting pods what room there is, the first created first."""
        self._waiting.sort(key=lambda entry: entry[0].number)
        while self._waiting:
            node = self._room()
            if node is None:
                break
            pod, placed = self._waiting.pop(0)
            node.pods.append(pod)
            pod.node, pod.bound_s = node, self._env.now
            placed.succeed()
        if self._waiting and self._pool is not None and not self._scanning:
            self._scanning = True
            self._env.process(self._scan(self._pool))

    def _room(self) -> Node | None:
        """The node for the next pod."""
        pool = self._pool
        if pool is None:
            held = self._per_pod * len(self.nodes)
            if self._max_gpus is not None and held + self._per_pod > self._max_gpus:
                return None
            node = self._new(self._per_pod)
            node.up = True
            return node
        fitting = [
            node
            for node in self.nodes
            if node.up and not node.cordoned and len(node.pods) < self._per_node
        ]
        sign = -1 if pool.packing == "most_allocated" else 1
        return min(fitting, key=lambda n: (sign * len(n.pods), n.number), default=None)

    # -- the pool --------------------------------------------------------------------------------

    def _new(self, gpus: int) -> Node:
        node = Node(self._made, gpus, self._env.now)
        self._made += 1
        self.nodes.append(node)
        return node

    def _join(self, node: Node) -> None:
        node.up = True
        node.empty_since_s = self._env.now
        assert self._pool is not None
        self._env.process(self._fate(node, self._pool))
        self._env.process(self._remove_if_idle(node, self._pool))

    def _scan(self, pool: NodePool) -> Process:
        """Order what the waiting pods need, once a scan period after the first of them."""
        yield self._env.timeout(pool.scan_s)
        self._scanning = False
        coming = sum(not node.up for node in self.nodes)
        missing = -(-len(self._waiting) // self._per_node) - coming
        if pool.max_nodes is not None:
            missing = min(missing, pool.max_nodes - len(self.nodes))
        for _ in range(missing):
            self._env.process(self._provision(pool))

    def _provision(self, pool: NodePool) -> Process:
        node = self._new(pool.gpus_per_node)
        yield self._env.timeout(pool.provision_s)
        self._join(node)
        self._serve()

    def _remove_if_idle(self, node: Node, pool: NodePool) -> Process:
        since_s = node.empty_since_s
        yield self._env.timeout(pool.idle_s)
        still = node in self.nodes and not node.pods and node.empty_since_s == since_s
        if still and len(self.nodes) > pool.min_nodes:
            self._end(node)
            self._serve()

    def _end(self, node: Node) -> None:
        if node in self.nodes:
            node.up = False
            node.gone_s = self._env.now
            self.nodes.remove(node)
            self.gone.append(node)

    # -- loss ------------------------------------------------------------------------------------

    def _fate(self, node: Node, pool: NodePool) -> Process:
        """What its own streams hold for a node: a loss or a reclaim, whichever is first."""
        loss_s = self._streams.wait_s(pool.losses_per_node_hour, "node loss", node.number)
        reclaim_s = self._streams.wait_s(pool.reclaims_per_node_hour, "spot reclaim", node.number)
        if min(loss_s, reclaim_s) == np.inf:
            return
        yield self._env.timeout(min(loss_s, reclaim_s))
        yield from self._lost(node) if loss_s <= reclaim_s else self._reclaimed(node)

    def _fullest_at(self, at_s: float, ends: Any) -> Process:
        yield self._env.timeout(at_s)
        up = [node for node in self.nodes if node.up]
        if up:
            yield from ends(min(up, key=lambda node: (-len(node.pods), node.number)))

    def _lost(self, node: Node) -> Process:
        """Nobody is asked: pods die with it, and the API server learns of it later."""
        if node in self.nodes:
            self._end(node)
            for pod in tuple(node.pods):
                pod.lose_node()
            self._serve()  # a pool at its limit may order again
        yield from ()

    def _reclaimed(self, node: Node) -> Process:
        """Its pods are deleted at the notice, and replaced; the machine goes at its end."""
        assert self._pool is not None
        if node in self.nodes and not node.cordoned:
            node.cordoned = True
            for pod in tuple(node.pods):
                pod.delete(self._env.now + self._pool.notice_s)
            yield self._env.timeout(self._pool.notice_s)
            yield from self._lost(node)
