"""Requests of a verify run as traces: which, with what spans, and what a store makes of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from workbench.track import Tracker
from workbench.track.traces import MOST, traced

if TYPE_CHECKING:
    from conftest import Results

    from workbench.measure import Measurement


@pytest.fixture(scope="module")
def replay(results: Results) -> Measurement:
    """The longest open loop, with warm-up, a request that came to nothing, and one that was sent late."""
    loops = [m for m in results.measurements if m.batch is None]
    longest = max(loops, key=lambda m: len(m.requests))
    requests = longest.requests.copy()
    requests.loc[:4, "counted"] = False
    requests["error"] = requests["error"].astype(object)
    requests.loc[7, "error"] = "HTTP 503"
    requests.loc[7, ["first_token_s", "end_s"]] = np.nan
    requests.loc[9, "scheduled_s"] -= 0.5
    return replace(longest, requests=requests)


def spans_of(trace: Any) -> dict[str, Any]:
    return {span.name: span for span in trace.data.spans}


def test_failed_and_slowest_are_in_the_sample_and_the_rest_is_even(replay: Measurement) -> None:
    found = {trace.number: trace for trace in traced(replay)}
    assert len(found) == MOST < len(replay.requests)
    assert found[7].chosen == "failed"
    assert not {0, 1, 2, 3, 4} & set(found)
    took_s = replay.latencies().set_index("request_id")["e2e_from_schedule_s"]
    slowest = {number for number, trace in found.items() if trace.chosen == "slowest"}
    assert slowest == set(took_s.nlargest(20).index)
    even = sorted(number for number, trace in found.items() if trace.chosen == "even")
    assert max(np.diff(even)) <= 2 * len(replay.requests) / len(even)


def test_a_short_run_is_traced_whole(replay: Measurement) -> None:
    short = replace(replay, requests=replay.requests[:30])
    assert [trace.number for trace in traced(short)] == [9, *range(5, 9), *range(10, 30)]


def test_spans_are_what_the_client_measured(replay: Measurement) -> None:
    begun_ns = datetime.fromisoformat(replay.environment.started_at).timestamp() * 1e9
    found = {trace.number: trace for trace in traced(replay)}
    row = replay.requests.loc[9]
    names = ("scheduled_s", "sent_s", "first_token_s", "end_s")
    times_ns = [round(begun_ns + row[name] * 1e9) for name in names]
    spans = found[9].spans
    assert [name for name, _, _ in spans] == ["wait to be sent", "TTFT", "decode"]
    assert [begin for _, begin, _ in spans] == pytest.approx(times_ns[:3], abs=1000)
    assert [end for _, _, end in spans] == pytest.approx(times_ns[1:], abs=1000)
    assert found[9].figures["e2e_s"] == pytest.approx(row["end_s"] - row["sent_s"])
    assert (found[7].spans, found[7].error) == ((), "HTTP 503")


def test_a_verify_run_has_its_traces(
    tracker: Tracker, results: Results, replay: Measurement
) -> None:
    with tracker.pipeline_run("demo") as run:
        verified = run.verify(replace(results.verification, measurement=replay))
        run.verify(replace(results.verification, measurement=replay))
    client, experiment = tracker._client, tracker.experiment_ids["workbench"]
    assert client.get_run(verified).data.tags["traces"] == f"{MOST} requests"
    assert len(client.search_traces(locations=[experiment])) == MOST
    linked = client.search_traces(locations=[experiment], run_id=verified)
    assert len(linked) == MOST

    failed = client.search_traces(locations=[experiment], filter_string="tags.chosen = 'failed'")
    assert [(t.info.state.value, t.info.tags["mlflow.traceName"]) for t in failed] == [
        ("ERROR", "request 7")
    ]
    (late,) = [t for t in linked if t.info.tags["mlflow.traceName"] == "request 9"]
    spans = spans_of(late)
    assert set(spans) == {"request 9", "wait to be sent", "TTFT", "decode"}
    root = spans["request 9"]
    assert {spans[name].parent_id for name in ("TTFT", "decode")} == {root.span_id}
    row = replay.requests.loc[9]
    assert root.attributes["output_tokens"] == row["output_tokens"]
    ttft_ns = spans["TTFT"].end_time_ns - spans["TTFT"].start_time_ns
    assert ttft_ns * 1e-9 == pytest.approx(row["first_token_s"] - row["sent_s"], abs=1e-6)
    assert late.info.token_usage["input_tokens"] == row["prompt_tokens"]


def test_a_store_that_takes_no_traces_keeps_the_run(
    tracker: Tracker, results: Results, replay: Measurement, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, *args: Any) -> None:
        raise NotImplementedError("log_spans is not supported: server version 3.3")

    monkeypatch.setattr("mlflow.tracing.client.TracingClient.log_spans", refuse)
    with tracker.pipeline_run("demo") as run:
        verified = run.verify(replace(results.verification, measurement=replay))
    found = tracker._client.get_run(verified)
    assert found.info.status == "FINISHED"
    assert found.data.tags["traces"].startswith("none: log_spans is not supported")
