"""The HorizontalPodAutoscaler's algorithm as pure functions over plain values.

Source:  kube-controller-manager, pkg/controller/podautoscaler (replica_calculator.go, horizontal.go).
"""

from simulations.autoscaler.controller import HpaController
from simulations.autoscaler.reconcile import Decision, State, reconcile
from simulations.autoscaler.values import Metrics, Options, Pod

__all__ = ["Decision", "HpaController", "Metrics", "Options", "Pod", "State", "reconcile"]
