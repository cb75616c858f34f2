"""What can be seen of a fleet, and how late: exporter, Prometheus, adapter, alerts.

pipeline.py  the delays             layout.py     which series a pod shows
samples.py   the samples            promql.py     the values of expressions over them
telemetry.py pods in, metrics out   alerts.py     what fires
"""

from simulations.metrics.alerts import Alerting, noise
from simulations.metrics.pipeline import Pipeline
from simulations.metrics.telemetry import Telemetry, busy_share

__all__ = ["Alerting", "Pipeline", "Telemetry", "busy_share", "noise"]
