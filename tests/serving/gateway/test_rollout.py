"""Rollouts as values: who goes where, every transition, and what is counted."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from serving.errors import InputError
from serving.gateway.analysis import Analysis
from serving.gateway.rollout import RolloutState, track_of
from serving.gateway.rollout.counts import BUCKETS_S, Counts
from serving.gateway.rollout.looking import due, figures, looks_for
from serving.gateway.rollout.operate import replicas_for
from serving.gateway.rollout.state import held, judged, promote, roll_back, start, switch
from simulations.fleet import Canary

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STEADY = RolloutState(stable="blue", since=NOW)
RULE = Analysis(window_s=100, look_s=20, max_windows=3, min_requests=50)
KEYS = [f"conversation-{i}" for i in range(20_000)]


def after(s: float) -> datetime:
    return NOW + timedelta(seconds=s)


def canary(*shares: float, salt: str | None = None, **fields: object) -> RolloutState:
    state = start(STEADY, "green", NOW, shares=shares or (0.01, 0.1, 0.5), rule=RULE)
    return state.model_copy(update={**fields, **({"salt": salt} if salt else {})})


# -- the split ------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.floats(0.001, 0.999), st.text(max_size=16))
def test_the_share_is_kept(share: float, salt: str) -> None:
    """Of 20,000 conversations within five standard errors, whatever the salt."""
    state = canary(share, salt=salt or None)
    seen = sum(track_of(key, state) == "green" for key in KEYS) / len(KEYS)
    assert abs(seen - share) <= 5 * math.sqrt(share * (1 - share) / len(KEYS)) + 1e-9


@given(st.text(), st.floats(0.001, 0.998), st.floats(0.001, 0.998))
def test_who_is_in_the_canary_stays_in_it(key: str, one: float, other: float) -> None:
    smaller, larger = sorted((one, other))
    few, many = canary(smaller, salt="s"), canary(larger, salt="s")
    assert track_of(key, few) == track_of(key, few)
    if track_of(key, few) == "green":
        assert track_of(key, many) == "green"


def test_each_rollout_begins_with_other_users() -> None:
    one, other = canary(0.1), canary(0.1)
    both = sum(track_of(k, one) == track_of(k, other) == "green" for k in KEYS) / len(KEYS)
    assert both == pytest.approx(0.01, abs=0.005)


def test_a_header_that_is_no_utf8_has_a_track_too() -> None:
    assert track_of("caf\udce9", canary(0.5)) in ("blue", "green")


def test_all_or_nothing_needs_no_hash() -> None:
    assert {track_of(key, STEADY) for key in KEYS[:100]} == {"blue"}
    switched = switch(STEADY, "green", NOW)
    assert {track_of(key, switched) for key in KEYS[:100]} == {"green"}
    back = roll_back(switched, "why", NOW)
    assert {track_of(key, back) for key in KEYS[:100]} == {"blue"}


# -- transitions ----------------------------------------------------------------------------------


def test_a_sound_canary_climbs_and_waits_for_the_operator() -> None:
    state = canary()
    for share, step in ((0.1, 1), (0.5, 2)):
        early = judged(state, "sound", state.since + timedelta(seconds=80), look=4, figures="")
        assert (early.share, early.looks) == (state.share, 4)
        state = judged(early, "sound", state.since + timedelta(seconds=100), look=5, figures="")
        assert (state.share, state.step, state.looks, state.phase) == (share, step, 0, "canary")
    with pytest.raises(InputError, match="has not passed yet"):
        promote(state, NOW)
    passed = judged(state, "sound", state.since + timedelta(seconds=100), look=5, figures="fine")
    assert passed.passed
    assert passed.share == 0.5
    assert "waits for promote: fine" in passed.reason
    done = promote(passed, NOW)
    assert (done.stable, done.candidate, done.phase, done.share) == ("green", "blue", "promoted", 0)
    undone = roll_back(done, "after all", NOW)
    assert (undone.stable, undone.candidate, undone.phase) == ("blue", "green", "rolled_back")


def test_worse_goes_back_at_once_and_undecided_after_all_windows() -> None:
    worse = judged(canary(), "worse", after(20), look=1, figures="12 of 14 failed", users_hit=9)
    assert (worse.phase, worse.share, worse.users_hit) == ("rolled_back", 0, 9)
    assert worse.reason == "worse: 12 of 14 failed"
    waiting = judged(canary(), "undecided", after(280), look=14, figures="")
    assert waiting.phase == "canary"
    late = judged(waiting, "undecided", after(300), look=15, figures="3 of 3")
    assert (late.phase, late.stable) == ("rolled_back", "blue")
    assert late.reason == "undecided after 3 windows of 100 s: 3 of 3"


def test_what_has_passed_goes_back_when_it_becomes_worse() -> None:
    passed = judged(canary(0.5), "sound", after(100), look=5, figures="")
    later = judged(passed, "undecided", after(10_000), look=500, figures="")
    assert (later.phase, later.looks) == ("canary", 500)
    assert judged(later, "worse", after(10_020), look=501, figures="").phase == "rolled_back"


def test_it_stays_where_nobody_is_there_to_return_to() -> None:
    state = canary()
    back = judged(state, "worse", after(20), look=1, figures="all failed")
    stays = held(state, back, look=1)
    assert (stays.phase, stays.share, stays.looks) == ("canary", 0.01, 1)
    assert "blue has no healthy replica to return to" in stays.reason
    assert stays.version == state.version + 1


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (lambda: start(STEADY, "blue", NOW), "track(='blue') takes all traffic already"),
        (lambda: start(canary(), "red", NOW), "green is being rolled out"),
        (lambda: switch(canary(), "green", NOW), "promote or rollback first"),
        (lambda: start(STEADY, "green", NOW, shares=()), "no share"),
        (lambda: promote(STEADY, NOW), "nothing to promote"),
        (lambda: roll_back(STEADY, "", NOW), "nothing to roll back"),
        (lambda: roll_back(roll_back(canary(), "", NOW), "", NOW), "nothing to roll back"),
    ],
)
def test_what_cannot_be_is_refused(work: object, says: str) -> None:
    with pytest.raises(InputError) as refused:
        work()  # type: ignore[operator]
    assert says in str(refused.value)


@pytest.mark.parametrize("shares", [(0.5, 0.1), (0.1, 0.1), (0.0, 0.5), (0.5, 1.0)])
def test_shares_ascend_between_nothing_and_everything(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="shares"):
        start(STEADY, "green", NOW, shares=shares)


def test_to_switch_back_is_to_roll_back() -> None:
    state = switch(switch(STEADY, "green", NOW), "blue", NOW)
    assert (state.phase, state.stable, state.reason) == (
        "rolled_back",
        "blue",
        "switched back to blue",
    )


@given(st.lists(st.sampled_from(["start", "switch", "promote", "back", "worse", "sound"])))
def test_whatever_happens_versions_grow_and_a_split_has_a_period(events: list[str]) -> None:
    state, now = STEADY, NOW
    for event in events:
        before, now = state, now + timedelta(seconds=150)
        other = "green" if state.stable == "blue" else "blue"
        try:
            if event == "start":
                state = start(state, other, now, rule=RULE)
            elif event == "switch":
                state = switch(state, other, now, rule=RULE)
            elif event == "promote":
                state = promote(state, now)
            elif event == "back":
                state = roll_back(state, "", now)
            elif state.phase in ("canary", "switched"):
                verdict = "worse" if event == "worse" else "sound"
                state = judged(state, verdict, now, look=state.looks + 1, figures="")
        except InputError:
            assert state == before
        if state == before:
            continue
        assert state.version == before.version + 1
        split = [(s.stable, s.candidate, s.share) for s in (before, state)]
        assert (state.period == before.period + 1) == (split[0] != split[1])
        assert RolloutState.model_validate_json(state.model_dump_json()) == state


# -- looks ----------------------------------------------------------------------------------------


def test_no_more_looks_are_due_than_are_corrected_for() -> None:
    state, taken = canary(), 0
    for second in range(301):
        number = due(state, after(second))
        if number is not None:
            taken += 1
            state = judged(state, "undecided", after(second), look=number, figures="")
    assert state.phase == "rolled_back"
    assert taken == RULE.looks(1) == 15
    assert due(state, after(400)) is None
    assert due(STEADY, after(400)) is None
    assert due(switch(STEADY, "green", NOW), after(400)) is None


def test_looks_at_what_waits_for_ever_risk_no_more_than_one_planned_look() -> None:
    passed = canary(0.5, passed_at_look=5, looks=5)
    planned = passed.planned_looks
    spent = sum(1 / looks_for(passed, number) for number in range(6, 20_000))
    assert spent < 1 / planned
    assert looks_for(canary(), 7) == 3 * 15


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("replicas", [1, 4, 10])
def test_a_canary_is_as_large_as_the_simulated_one(share: float, replicas: int) -> None:
    assert replicas_for(share, replicas) == Canary().pods(share, replicas)


# -- counts ---------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0, 5000), min_size=1, max_size=60),
    st.sampled_from([0.5, 0.9, 0.99]),
    st.sampled_from(["ttft", "tpot", "e2e"]),
)
def test_a_quantile_is_in_the_bucket_of_the_true_one(
    took_s: list[float], q: float, latency: str
) -> None:
    counts = Counts()
    for value in took_s:
        counts.observe(latency, value)  # type: ignore[arg-type]
    edges = BUCKETS_S[latency]  # type: ignore[index]
    # At a rank that is a whole number rounding may take either neighbour.
    ordered = sorted(took_s)
    low, high = (
        ordered[min(len(ordered), max(1, math.ceil(q * len(ordered) + d))) - 1]
        for d in (-1e-9, 1e-9)
    )
    upper = next((edge for edge in edges if edge >= high), edges[-1])
    lower = max((edge for edge in edges if edge < low), default=0.0)
    found = counts.quantile_s(latency, q)  # type: ignore[arg-type]
    assert found is not None
    assert lower - 1e-9 <= found <= upper + 1e-9
    assert counts.mean_s(latency) == pytest.approx(np.mean(took_s))  # type: ignore[arg-type]


def test_nothing_has_no_figures() -> None:
    assert Counts().quantile_s("ttft", 0.99) is None
    assert Counts().mean_s("ttft") is None
    assert Counts().error_share is None
    assert (
        figures(Counts().served("tpot"), Counts().served("tpot"), RULE)
        == "0 of 0 against 0 of 0 failed; no TPOT of both was seen"
    )


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100)), max_size=40), st.integers(0, 40))
def test_parts_add_up_to_the_whole(requests: list[tuple[bool, float]], cut: int) -> None:
    def counted(some: list[tuple[bool, float]]) -> Counts:
        counts = Counts()
        for failed, took_s in some:
            counts.failed += failed
            counts.answered += not failed
            counts.observe("e2e", took_s)
        return counts

    whole = counted(requests)
    parts = Counts.sum_of([counted(requests[:cut]), counted(requests[cut:])])
    assert (parts.answered, parts.failed, parts.buckets) == (
        whole.answered,
        whole.failed,
        whole.buckets,
    )
    assert parts.sums_s["e2e"] == pytest.approx(whole.sums_s["e2e"])
