"""A fleet under a Kubernetes control plane, as SimPy processes over the data plane.

cluster.py    what a plan runs on            nodes.py     machines: packing, provisioning, loss
pods.py       the life of a pod              faults.py    crashes, OOM kills, restarts
rollouts.py   strategies, and Kubernetes' arithmetic      releases.py  a rollout as it happens
analysis.py   what versions have shown       blast.py     whom a release touched
watch.py      timeline; feeds ../metrics     fleet.py     all of it together
plane.py      the seam to the data plane     streams.py   a random stream for each source
"""

from serving.gateway.analysis import Analysis
from simulations.fleet.blast import blast_radius
from simulations.fleet.cluster import Activation, Cluster, ReadinessProbe, Termination
from simulations.fleet.faults import Faults
from simulations.fleet.fleet import Fleet
from simulations.fleet.nodes import NodePool
from simulations.fleet.plane import Plane
from simulations.fleet.rollouts import BlueGreen, Canary, Recreate, Release, RollingUpdate

__all__ = [
    "Activation",
    "Analysis",
    "BlueGreen",
    "Canary",
    "Cluster",
    "Faults",
    "Fleet",
    "NodePool",
    "Plane",
    "ReadinessProbe",
    "Recreate",
    "Release",
    "RollingUpdate",
    "Termination",
    "blast_radius",
]
