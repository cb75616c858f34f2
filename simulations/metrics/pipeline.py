"""The way of a number from a pod to the autoscaler, and how old it is when it arrives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from serving.signals import SCRAPE_INTERVAL_S
from serving.values import Value


class Pipeline(Value):
    """Delays of the metrics, from the exporter to the adapter; the sync is the cluster's.

    The windows of rate() and of percentiles belong to the expressions, in serving/signals.py: as in
    Prometheus, one that holds fewer than two samples has no rate.

    Source:  dcgm-exporter, DCGM_EXPORTER_INTERVAL=30000; prometheus-adapter, chart value
             metricsRelistInterval 1m; Prometheus, --query.lookback-delta 5m and "Staleness". Scrapes
             and rules as the bundle has them. The age of an answer is an assumption.
    """

    gpu_exporter_s: float = Field(30.0, ge=0)
    """Between two readings of the GPUs by their exporter, which Prometheus then scrapes; 0: at each
    scrape."""
    scrape_interval_s: float = Field(SCRAPE_INTERVAL_S, gt=0)
    """Between two scrapes of a pod."""
    scrape_slots: int = Field(1, ge=1)
    """Pods are scraped at so many offsets, spread over the interval; 1: all at once."""
    query_age_s: float = Field(5.0, ge=0)
    """Of the adapter's answer when the autoscaler reads it: ingestion, query, API."""
    relist_s: float = Field(60.0, ge=0)
    """Between two looks of the adapter for metrics that have samples since the last look; it answers
    for no other. 0: it knows all. What the pods of the start have is known from the start."""
    lookback_s: float = Field(300.0, gt=0)
    """A series without a new sample keeps its last value so long."""
    stale_markers: bool = True
    """A target that is gone or does not answer ends its series at once."""
    evaluation_interval_s: float = Field(SCRAPE_INTERVAL_S, gt=0)
    """Between two evaluations of the alerts."""
    prometheus: Literal[2, 3] = 3
    """Major version: before 3 a sample at the very beginning of a window belonged to it."""

    @model_validator(mode="after")
    def _seen_before_it_ends(self) -> Pipeline:
        if self.lookback_s < self.scrape_interval_s:
            raise ValueError(
                f"scrape_interval_s(={self.scrape_interval_s}) must be"
                f" <= lookback_s(={self.lookback_s}): series would end between two scrapes"
            )
        return self
