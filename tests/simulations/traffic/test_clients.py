"""Who asks: known questions, patience and retries, priorities, networks; and lengths that go together.

Seeds are fixed; statistical bounds lie four standard errors away.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from simulations.traffic import (
    NETWORKS,
    Clients,
    ConstantDelay,
    Edge,
    EmpiricalDelay,
    ExponentialDelay,
    Fixed,
    LogNormal,
    LogNormalDelay,
    Network,
    Poisson,
    Priorities,
    Questions,
    Replay,
    Schedule,
    Sessions,
    SharedPrefix,
    Spike,
    Uniform,
    UniformDelay,
    Workload,
)

ERRORS = 4.0


def workload(**changes: Any) -> Workload:
    chosen: dict[str, Any] = {
        "arrivals": Poisson(rate_rps=50),
        "prompt_tokens": LogNormal(median_tokens=200, mean_tokens=400, max_tokens=100_000),
        "output_tokens": LogNormal(median_tokens=300, mean_tokens=500, max_tokens=100_000),
        "duration_s": 4000.0,
        **changes,
    }
    return Workload.model_validate(chosen)


@pytest.mark.parametrize("target", [-0.5, 0.0, 0.3, 0.9])
def test_prompt_and_output_go_together_as_asked(target: float) -> None:
    plain, tied = workload().schedule(), workload(correlation=target).schedule()
    n = len(tied)
    found = stats.spearmanr(tied.prompt_tokens, tied.output_tokens).statistic
    assert found == pytest.approx(target, abs=ERRORS / np.sqrt(n))
    assert n > 190_000
    # Neither law has changed: the same prompts, and the same answers in another order.
    np.testing.assert_array_equal(tied.prompt_tokens, plain.prompt_tokens)
    np.testing.assert_array_equal(np.sort(tied.output_tokens), np.sort(plain.output_tokens))


def test_known_questions_are_asked_as_zipf_says() -> None:
    questions = Questions(distinct=40, zipf=0.8, share=0.3)
    drawn = workload(questions=questions).schedule()
    assert drawn.key is not None
    n, asked = len(drawn), drawn.key[drawn.key >= 0]
    assert len(asked) / n == pytest.approx(0.3, abs=ERRORS * np.sqrt(0.21 / n))
    weights = np.arange(1, 41) ** -0.8
    expected = weights / weights.sum() * len(asked)
    counts = np.bincount(asked, minlength=40)
    assert stats.chisquare(counts, expected).pvalue > 1e-4


@pytest.mark.parametrize("sessions", [None, Sessions(turns=Uniform(min_tokens=1, max_tokens=4))])
@pytest.mark.parametrize("prefix", [None, SharedPrefix(tokens=Fixed(tokens=9), groups=5)])
def test_the_same_question_is_the_same_prompt(
    sessions: Sessions | None, prefix: SharedPrefix | None
) -> None:
    questions = Questions(distinct=10, share=0.5)
    drawn = workload(
        questions=questions, sessions=sessions, shared_prefix=prefix, duration_s=20.0
    ).schedule()
    assert drawn.key is not None
    assert drawn.segments is not None
    np.testing.assert_array_equal(drawn.segments.lengths(), drawn.prompt_tokens)
    asked: dict[int, set[object]] = {}
    alone: list[object] = []
    for i, key in enumerate(drawn.key.tolist()):
        content = (drawn.segments[i], int(drawn.output_tokens[i]))
        if key >= 0:
            asked.setdefault(key, set()).add(content)
            assert drawn.after is None or drawn.after[i] < 0
        else:
            alone.append(drawn.segments[i][-1][0])
    assert len(asked) == 10
    assert all(len(contents) == 1 for contents in asked.values())
    assert len(set(alone)) == len(alone)  # what is asked once is nobody else's


def test_without_questions_lengths_are_those_of_their_law() -> None:
    """A question takes the lengths of its first asker: one draw of the law for each question."""
    many = workload(questions=Questions(distinct=50_000, zipf=0)).schedule()
    assert np.median(many.prompt_tokens) == pytest.approx(200, rel=0.03)
    assert many.key is not None
    _, first = np.unique(many.key, return_index=True)
    plain = workload().schedule()
    np.testing.assert_array_equal(many.prompt_tokens[first], plain.prompt_tokens[first])


def test_conversations_have_an_id_and_keep_their_priority() -> None:
    drawn = workload(
        sessions=Sessions(turns=Fixed(tokens=3)),
        priorities=Priorities(shares=(0.2, 0.8)),
        duration_s=100.0,
    ).schedule()
    assert drawn.conversation is not None
    assert drawn.after is not None
    assert drawn.priority is not None
    assert (np.bincount(drawn.conversation) == 3).all()
    later = np.flatnonzero(drawn.after >= 0)
    before = drawn.after[later]
    np.testing.assert_array_equal(drawn.conversation[later], drawn.conversation[before])
    np.testing.assert_array_equal(drawn.priority[later], drawn.priority[before])


def test_priorities_come_in_their_shares() -> None:
    drawn = workload(priorities=Priorities(shares=(0.1, 0.6, 0.3))).schedule()
    assert drawn.priority is not None
    expected = np.array([0.1, 0.6, 0.3]) * len(drawn)
    assert stats.chisquare(np.bincount(drawn.priority), expected).pvalue > 1e-4


ADDED: dict[str, tuple[Any, set[str]]] = {
    "correlation": (0.5, {"output_tokens"}),
    "questions": (Questions(distinct=5, share=0.2), {"key"}),
    "priorities": (Priorities(shares=(0.5, 0.5)), {"priority"}),
    "clients": (Clients(patience=ExponentialDelay(mean_s=3)), {"patience_s", "clients"}),
    "network": (NETWORKS["public"], {"network_s"}),
    "shared_prefix": (SharedPrefix(tokens=Fixed(tokens=5)), {"prompt_tokens"}),
}
LAWS = {
    "prompt_tokens": Uniform(min_tokens=1, max_tokens=9),
    "output_tokens": Uniform(min_tokens=1, max_tokens=9),
}


@pytest.mark.parametrize("name", [*ADDED, *LAWS])
def test_each_source_has_a_stream_of_its_own(name: str) -> None:
    """All are there; one is changed or taken away, and the rest is drawn as before."""
    added = {key: value for key, (value, _) in ADDED.items() if key != "questions"}
    whole = workload(duration_s=50.0, **added)
    changed = whole.at(**({name: LAWS[name]} if name in LAWS else {name: ADDED[name][0]}))
    if name in added:
        changed = whole.at(**{name: None})
    touched = {name} if name in LAWS else ADDED[name][1]
    if name == "prompt_tokens":
        touched = {"prompt_tokens", "output_tokens"}  # the answers' order follows the prompts'
    before, after = whole.schedule(), changed.schedule()
    same = set()
    for array in ("arrived_at_s", "prompt_tokens", "output_tokens", "priority", "patience_s"):
        same.add(array) if np.array_equal(getattr(before, array), getattr(after, array)) else None
    if np.array_equal(before.network_s, after.network_s):  # type: ignore[arg-type]
        same.add("network_s")
    known = {"arrived_at_s", "prompt_tokens", "output_tokens", "priority", "patience_s"}
    if name == "questions":  # who asks a known question takes its lengths: the others keep theirs
        assert after.key is not None
        alone = after.key < 0
        np.testing.assert_array_equal(before.output_tokens[alone], after.output_tokens[alone])
        known -= {"prompt_tokens", "output_tokens"}
    assert same >= (known | {"network_s"}) - touched
    assert not same & touched


@pytest.mark.parametrize(
    ("delay", "mean_s", "deviation_s"),
    [
        (ConstantDelay(seconds=0.2), 0.2, 0.0),
        (UniformDelay(min_s=0.1, max_s=0.3), 0.2, 0.2 / np.sqrt(12)),
        (ExponentialDelay(mean_s=5), 5, 5),
        (EmpiricalDelay(seconds=(1.0, 3.0)), 2, 1),
    ],
)
def test_delays_have_their_means(delay: Any, mean_s: float, deviation_s: float) -> None:
    found = delay.draw(100_000, np.random.default_rng(0))
    assert found.mean() == pytest.approx(mean_s, abs=ERRORS * deviation_s / np.sqrt(1e5) + 1e-12)
    assert found.std() == pytest.approx(deviation_s, rel=0.02)


def test_a_lognormal_delay_has_its_median_and_its_tail() -> None:
    """The edge: 58 % of its users are within 10 ms."""
    found = NETWORKS["edge"].round_trip.draw(200_000, np.random.default_rng(0))
    assert np.median(found) == pytest.approx(0.009, rel=0.01)
    assert np.percentile(found, 99) == pytest.approx(0.03, rel=0.02)
    assert (found < 0.01).mean() == pytest.approx(0.58, abs=0.01)


def test_a_public_network_takes_100_to_300_ms() -> None:
    drawn = workload(network=NETWORKS["public"]).schedule()
    assert drawn.network_s is not None
    assert 0.1 <= drawn.network_s.min() < 0.101
    assert 0.299 < drawn.network_s.max() <= 0.3


def test_pauses_double_up_to_the_most_and_are_spread() -> None:
    """0.5, 1, 2, 4, 8, 8 s, less up to a quarter."""
    clients = Clients()
    retries = np.arange(1, 7)
    assert clients.pauses_s(retries, 0.0).tolist() == [0.5, 1, 2, 4, 8, 8]
    assert clients.pauses_s(retries, 1.0).tolist() == [0.375, 0.75, 1.5, 3, 6, 6]
    assert Clients(jitter=0).pauses_s(2000, 0.9) == 8


def test_patience_is_that_of_the_clients() -> None:
    drawn = workload(clients=Clients(patience=ExponentialDelay(mean_s=30))).schedule()
    assert drawn.patience_s is not None
    assert stats.kstest(drawn.patience_s, stats.expon(scale=30).cdf).pvalue > 1e-4
    assert workload(clients=Clients()).schedule().patience_s is None


def test_a_spike_plays_a_trace_faster_and_then_goes_on(tmp_path: Any) -> None:
    path = tmp_path / "trace.csv"
    rows = "".join(f"{at},5,5\n" for at in range(101))
    path.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + rows)
    played = Workload.of_trace(
        Replay.of(path), spikes=[Spike(at_s=10, height=4, length_s=5).model_dump()]
    )
    drawn = played.schedule()
    assert len(drawn) == 101
    assert played.duration_s == pytest.approx(100 - 15, abs=0.001)
    counts = np.histogram(drawn.arrived_at_s, [0, 9.9, 14.9, 86])[0]
    assert counts.tolist() == [10, 20, 71]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"correlation": 1.0}, "less than 1"),
        ({"correlation": float("nan")}, "finite"),
        ({"duration_s": float("inf")}, "finite"),
        ({"spikes": [{"at_s": 5000, "height": 2, "length_s": 1}]}, "must begin before"),
        ({"spikes": [{"at_s": 5, "height": 0.5, "length_s": 1}]}, "greater than or equal to 1"),
        (
            {
                "spikes": [{"at_s": 5, "height": 2, "length_s": 1}],
                "arrivals": {"kind": "closed", "concurrency": 1, "requests": 2},
            },
            "closed loop",
        ),
        ({"priorities": {"shares": [0.5, 0.4]}}, r"must add up to 1, not to 0.9"),
        ({"clients": {"backoff_s": 9}}, r"max_backoff_s\(=8.0\)"),
        ({"network": {"round_trip": {"kind": "uniform", "min_s": 2, "max_s": 1}}}, "must be <="),
        ({"network": {"round_trip": {"kind": "constant", "seconds": -1}}}, "greater than or equal"),
        ({"questions": {"distinct": 0}}, "greater than or equal to 1"),
        ({"questions": {"distinct": 5, "share": 1.5}}, "less than or equal to 1"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        workload(**wrong)


def test_an_edge_is_declared_with_its_networks() -> None:
    edge = Edge(sites=10)
    assert edge.to_site == NETWORKS["edge"]
    assert isinstance(edge.to_site.round_trip, LogNormalDelay)
    assert Edge.model_validate_json(edge.model_dump_json()) == edge
    with pytest.raises(ValueError, match="sites"):
        Edge(sites=0)


def test_a_day_of_millions_is_drawn_in_flat_arrays() -> None:
    """4.3 million requests with everything on hold less than 64 bytes each beside their prompts."""
    drawn = workload(
        duration_s=86_400.0,
        questions=Questions(distinct=1000, share=0.5),
        network=Network(round_trip=ConstantDelay(seconds=0.1)),
        priorities=Priorities(shares=(0.5, 0.5)),
    ).schedule()
    assert len(drawn) == pytest.approx(4_320_000, abs=ERRORS * np.sqrt(4_320_000))
    assert isinstance(drawn, Schedule)
    arrays = [value for value in vars(drawn).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) <= 64 * len(drawn)
    assert drawn.segments is not None
    flat = (drawn.segments.first, drawn.segments.segment, drawn.segments.tokens)
    assert sum(array.nbytes for array in flat) <= 20 * len(drawn) + 8


@pytest.mark.parametrize("sessions", [None, Sessions(turns=Fixed(tokens=2))])
def test_a_workload_in_which_nobody_comes_is_an_empty_schedule(sessions: Sessions | None) -> None:
    added = {name: value for name, (value, _) in ADDED.items()}
    nothing = workload(arrivals=Poisson(rate_rps=1e-9), sessions=sessions, **added).schedule()
    assert len(nothing) == 0
    assert nothing.segments is not None
    assert len(nothing.segments) == 0
