from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from simulations.traffic import ClosedLoop, Fixed, Poisson, Workload
from workbench.measure.engine import Outcome, requests_frame
from workbench.measure.validity import doubts

OPEN = Workload(
    arrivals=Poisson(rate_rps=10), prompt_tokens=Fixed(tokens=1), output_tokens=Fixed(tokens=1)
)
CLOSED = OPEN.at(arrivals=ClosedLoop(concurrency=2, requests=40))


def table(n: int = 40, gap_s: float = 0.1) -> pd.DataFrame:
    return requests_frame(
        [
            Outcome(i, i * gap_s, 1, 1, i * gap_s + 1e-4, i * gap_s + 0.1, i * gap_s + 0.1, 1)
            for i in range(n)
        ]
    )


def test_a_sound_run_is_not_doubted() -> None:
    assert doubts(table(), OPEN, "server") == []


def test_errors() -> None:
    bad = table()
    bad.loc[[3, 5], "error"] = "HTTP 500: out of blocks"
    [reason] = doubts(bad, OPEN, "server")
    assert reason == "2 of 40 requests failed: HTTP 500: out of blocks"


def test_errors_within_the_warm_up_do_not_count() -> None:
    bad = table(60)
    bad.loc[3, "error"] = "HTTP 500"
    bad["counted"] = bad["scheduled_s"] >= 1
    assert doubts(bad, OPEN, "server") == []


def test_other_lengths_than_asked() -> None:
    bad = table()
    bad.loc[3, "output_tokens"] = 0
    [reason] = doubts(bad, OPEN, "server")
    assert "another length than asked (the first: 0 for 1 tokens)" in reason


def test_too_few_requests_behind_a_server() -> None:
    [reason] = doubts(table(19), OPEN, "server")
    assert reason.startswith("19 requests are too few")
    assert doubts(table(20), OPEN, "server") == []
    assert doubts(table(4), CLOSED, "offline") == []


@pytest.mark.parametrize(
    ("late_s", "gap_s", "refused"),
    [
        (0.004, 0.001, False),  # under 5 ms is never late
        (0.006, 0.001, True),
        (0.009, 0.1, False),  # under a tenth of the mean gap
        (0.011, 0.1, True),
    ],
)
def test_a_client_that_sends_late(late_s: float, gap_s: float, refused: bool) -> None:
    late = table(gap_s=gap_s)
    late["sent_s"] = late["scheduled_s"] + late_s
    found = doubts(late, OPEN, "server")
    assert bool(found) == refused
    assert not refused or "the client sent late" in found[0]
    # In a closed loop nobody waits for the client, and offline a step must end first.
    assert doubts(late, CLOSED, "server") == []
    assert doubts(late, OPEN, "offline") == []


def test_one_late_request_in_many_is_forgiven() -> None:
    late = table(400)
    late.loc[7, "sent_s"] += 1
    assert np.ptp(late["sent_s"] - late["scheduled_s"]) > 0.9
    assert doubts(late, OPEN, "server") == []
