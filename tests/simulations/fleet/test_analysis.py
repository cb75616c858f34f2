"""What the twin's replicas show is what the gateway's rule is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from serving.gateway.analysis import Latency, Served
from serving.gateway.rollout.counts import BUCKETS_S as GATEWAY_BUCKETS_S
from simulations.engine import BUCKETS_S, Reading
from simulations.fleet.analysis import served


@pytest.mark.parametrize("latency", ["ttft", "tpot", "e2e"])
def test_both_count_in_the_same_buckets(latency: Latency) -> None:
    assert GATEWAY_BUCKETS_S[latency] == BUCKETS_S[latency]


def test_replicas_are_added_up_with_what_was_lost() -> None:
    none = Reading(0.0, 0, 0, 0.0, 0.0, 0.0, ttft_sum_s=0.0, ttft_count=0)
    first = replace(
        none,
        finished=2,
        failed=1,
        tpot_sum_s=0.5,
        histograms={"tpot": np.array([1, 1, 0])},
    )
    second = replace(none, finished=1, tpot_sum_s=0.25, histograms={"tpot": np.array([0, 0, 1])})
    assert served([first, second], 4, "tpot") == Served(3, 5, 0.75, (1, 1, 1))
    assert served([], 0, "tpot").requests == 0
