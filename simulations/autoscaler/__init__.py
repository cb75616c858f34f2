"""The HorizontalPodAutoscaler's algorithm as pure functions over plain values.

    options.py    flags, versions            values.py     pods, samples, answers of the metrics APIs
    pods.py       who counts, requests       calculator.py one metric -> replicas
    proposals.py  all metrics of a spec      behavior.py   stabilization, rate limits, scale events
    status.py     conditions, events         selectors.py  label selectors
    compiled.py   a spec for many passes     decision.py   what a pass comes to
    reconcile.py  one pass                   controller.py as the fleet calls it

Source:  kube-controller-manager, pkg/controller/podautoscaler (replica_calculator.go, horizontal.go).
"""

from simulations.autoscaler.compiled import Compiled
from simulations.autoscaler.controller import HpaController
from simulations.autoscaler.decision import Decision, State
from simulations.autoscaler.options import Options
from simulations.autoscaler.reconcile import reconcile
from simulations.autoscaler.status import Condition, Event
from simulations.autoscaler.values import Container, Metrics, Pod, Sample, Usage

__all__ = [
    "Compiled",
    "Condition",
    "Container",
    "Decision",
    "Event",
    "HpaController",
    "Metrics",
    "Options",
    "Pod",
    "Sample",
    "State",
    "Usage",
    "reconcile",
]
