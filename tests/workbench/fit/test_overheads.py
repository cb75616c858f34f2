"""What a server adds to steps and requests, and the twin on a model that knows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulations.engine import simulate_replica
from simulations.latency import FloatArray
from simulations.traffic import ClosedLoop, Fixed, Schedule, Workload
from workbench.fit import fit
from workbench.measure.fake import StepTime

from .made import (
    ENGINE,
    TRUE,
    answered,
    faked,
    latency_model,
    measurement,
    poisson,
    steps,
)


def test_a_server_on_top_of_offline_steps_gives_its_overhead() -> None:
    on_server = steps(2000, 6).assign(step_s=lambda t: t["step_s"] + 7e-4)
    requests = answered(np.arange(40.0), ttft_s=0.05)
    model = fit(
        [
            measurement(steps(2000, 5)),
            measurement(on_server, mode="server", requests=requests, workload=poisson(1.0)),
        ]
    )
    assert model.step_overhead_s == pytest.approx(7e-4, rel=0.1)
    assert model.base_s == pytest.approx(TRUE["base_s"], rel=0.05)
    assert "server_step_median" in model.heldout_error


def test_gaps_between_steps_are_the_step_overhead() -> None:
    assert fit([measurement(steps(600, 7, gap_s=3e-4))]).step_overhead_s == pytest.approx(3e-4)


def test_request_overhead_is_what_the_twin_lacks_at_the_lightest_load() -> None:
    light = measurement(
        steps(600, 8).assign(running=1),
        name="light",
        mode="server",
        requests=answered(np.arange(40.0), ttft_s=0.05),
        workload=poisson(1.0),
    )
    heavy = measurement(
        steps(600, 9).assign(running=30),
        name="heavy",
        mode="server",
        requests=answered(np.arange(40.0), ttft_s=5.0),
        workload=poisson(9.0),
    )
    other = measurement(steps(600, 10).assign(running=30), mode="server", workload=poisson(9.0))
    model = fit([light, heavy, other])
    alone_s = float(model.step_time_s(100, 0, 0, 0, 1)) + model.step_overhead_s
    whole_s = model.request_overhead_s + model.response_overhead_s
    assert whole_s == pytest.approx(0.05 - alone_s, rel=1e-3)
    assert model.response_overhead_s == 0, "the log does not reach to these requests"
    assert np.median(model.request_noise_s) == pytest.approx(0, abs=1e-9)


def test_what_comes_behind_a_step_is_told_from_what_comes_before_the_queue() -> None:
    sent_s = np.arange(1.0, 41.0)
    light = measurement(
        first_tokens(sent_s, 0.002, seqs=1),
        mode="server",
        requests=answered(sent_s, ttft_s=0.05),
        workload=poisson(1.0),
    )
    model = fit([light, measurement(steps(600, 8))])
    assert model.response_overhead_s == pytest.approx(0.002, rel=1e-6)
    assert model.request_overhead_s > 0.03
    assert model.response_per_seq_s == 0, "one load does not tell"


def test_what_each_sequence_of_a_step_adds_is_told_by_several_loads() -> None:
    sent_s = np.arange(1.0, 41.0)
    loads = [
        measurement(
            first_tokens(sent_s, 0.001 + 1e-4 * seqs, seqs=seqs),
            name=f"load-{seqs}",
            mode="server",
            requests=answered(sent_s, ttft_s=0.05),
            workload=poisson(1.0),
        )
        for seqs in (1, 20, 60)
    ]
    model = fit([*loads, measurement(steps(600, 8))])
    assert model.response_per_seq_s == pytest.approx(1e-4, rel=1e-3)
    assert model.response_overhead_s == pytest.approx(0.001, rel=1e-3)
    close = fit([*loads[:1], *loads[:1], *loads[:1], measurement(steps(600, 8))])
    assert close.response_per_seq_s == 0


def first_tokens(sent_s: FloatArray, behind_s: float, *, seqs: int) -> pd.DataFrame:
    """A step for each first token, which its client has after 50 ms, `behind_s` after the step."""
    return pd.DataFrame(
        {
            "t_s": sent_s + 0.05 - behind_s,
            "step_s": 0.005,
            "gap_s": np.nan,
            "prefill_requests": 1,
            "prefill_tokens": 100,
            "decode_seqs": seqs - 1,
            "kv_tokens": 100 * seqs,
            "running": seqs,
            "waiting": 0,
        }
    )


def test_the_twin_on_a_fitted_fake_gives_the_fakes_own_latencies(tmp_path: Path) -> None:
    sweep = [
        faked(
            Workload(
                arrivals=ClosedLoop(concurrency=batch, requests=2 * batch),
                prompt_tokens=Fixed(tokens=64),
                output_tokens=Fixed(tokens=64),
            ),
            "offline",
            tmp_path,
            seed=batch,
        )
        for batch in (1, 4, 16, 32)
    ]
    model = fit([*sweep, faked(poisson(4.0), "server", tmp_path)])
    assert model.base_s == pytest.approx(StepTime().base_s, rel=0.03)
    assert model.step_overhead_s < 0.02 * StepTime().base_s
    assert model.request_overhead_s < 1e-3
    assert model.cold_start.start_s == 30
    unseen = faked(poisson(14.0, seed=5), "server", tmp_path, seed=9)
    seen = unseen.latencies()
    schedule = Schedule(
        seen["sent_s"].to_numpy(),
        seen["prompt_tokens"].to_numpy(),
        seen["output_tokens"].to_numpy(),
    )
    predicted = simulate_replica(schedule, model, ENGINE)
    assert model.pad_to_tokens == ()
    for column, tolerance in (("ttft_s", 0.05), ("tpot_s", 0.03), ("e2e_s", 0.03)):
        for q in (0.5, 0.99):
            assert predicted[column].quantile(q) == pytest.approx(
                seen[column].quantile(q), rel=tolerance
            ), (column, q)


def test_overheads_may_be_borrowed_where_no_server_was_measured() -> None:
    other = latency_model(variant="int8", step_overhead_s=5e-4, request_overhead_s=4e-3)
    alone = fit([measurement(steps(300, 13))])
    borrowed = fit([measurement(steps(300, 13))], overheads_from=other)
    assert (alone.request_overhead_s, borrowed.request_overhead_s) == (0, 4e-3)
    assert borrowed.step_overhead_s == 5e-4
    assert "borrowed from int8" in borrowed.source
    assert "not measured" in alone.source
