"""What is made of a model's answers: intervals against theory, divergences against their formula."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from serving.plan import EngineArgs, Quality, Variant
from serving.values import Estimate
from workbench.compress import quality
from workbench.compress.quality import (
    Answers,
    Ask,
    bootstrap,
    mean_of,
    quality_of,
    recovery_of,
)
from workbench.compress.texts import Seen

VOCABULARY = 40


def answers(logits: np.ndarray, tokens: np.ndarray, top: int, right: np.ndarray) -> Answers:
    """What a model with these logits (rows, positions, vocabulary) says of these tokens."""
    logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    ids = np.argsort(-logp, axis=-1)[..., :top]
    return Answers(
        logp=np.take_along_axis(logp, tokens[..., None], -1)[..., 0].astype(np.float32),
        top_ids=ids.astype(np.int32),
        top_logp=np.take_along_axis(logp, ids, -1).astype(np.float32),
        right=right,
        benchmarks={"quiz": right.astype(float)},
    )


def two_models(top: int = VOCABULARY) -> tuple[Answers, Answers, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    theirs = rng.normal(0, 2, (30, 12, VOCABULARY))
    own = theirs + rng.normal(0, 0.4, theirs.shape)
    tokens = rng.integers(0, VOCABULARY, (30, 12))
    right, parents_right = rng.random((2, 200)) < 0.8
    own_said, their_said = (
        answers(logits, tokens, top, said)
        for logits, said in ((own, right), (theirs, parents_right))
    )
    return own_said, their_said, own, theirs


def exact_kl(theirs: np.ndarray, own: np.ndarray) -> float:
    logp, logq = (x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in (theirs, own))
    return float((np.exp(logp) * (logp - logq)).sum(axis=-1).mean())


def test_scores_are_their_formulas() -> None:
    own_said, their_said, own, theirs = two_models()
    found = quality_of(own_said, their_said)
    assert found.perplexity.value == pytest.approx(math.exp(-own_said.logp.mean()), rel=1e-6)
    ratio = math.exp(their_said.logp.mean() - own_said.logp.mean())
    assert found.perplexity_ratio.value == pytest.approx(ratio, rel=1e-6)
    assert found.agreement.value == pytest.approx((own.argmax(-1) == theirs.argmax(-1)).mean())
    assert found.kl_nats.value == pytest.approx(exact_kl(theirs, own), rel=1e-5)
    assert found.task_accuracy.value == own_said.right.mean()
    assert found.recovery.value == own_said.right.mean() / their_said.right.mean()
    assert found.benchmark_recovery["quiz"].value == found.recovery.value
    for name in ("perplexity", "perplexity_ratio", "agreement", "kl_nats", "recovery"):
        score = getattr(found, name)
        assert score.low < score.value < score.high


def test_the_divergence_of_fewer_tokens_is_a_floor() -> None:
    floors = []
    for top in (2, 8, 24, VOCABULARY):
        own_said, their_said, own, theirs = two_models(top)
        floors.append(quality_of(own_said, their_said).kl_nats.value)
    assert floors == sorted(floors)
    assert 0 < floors[0] < floors[-1]
    assert floors[-1] == pytest.approx(exact_kl(theirs, own), rel=1e-5)


def test_a_parent_against_itself_loses_nothing() -> None:
    _, theirs, *_ = two_models()
    found = quality_of(theirs, theirs)
    assert (found.perplexity_ratio.low, found.perplexity_ratio.high) == (1, 1)
    assert (found.agreement.value, found.kl_nats.value) == (1, 0)
    assert found.recovery.value == 1
    # Not of no width: on other questions the two might differ.
    assert 0.97 < found.recovery.low < 1 < found.recovery.high


def test_pairing_narrows_the_interval() -> None:
    """Most of what one text differs from another is common to both models."""
    own_said, their_said, *_ = two_models()
    found = quality_of(own_said, their_said)
    width = (
        found.perplexity_ratio.high - found.perplexity_ratio.low
    ) / found.perplexity_ratio.value
    alone = (found.perplexity.high - found.perplexity.low) / found.perplexity.value
    assert width < alone / 2


def test_a_proportion_has_wilsons_interval() -> None:
    """Brown, Cai & DasGupta, Statistical Science 16 (2001): 0 of 10 is [0, 0.2775]."""
    rng = np.random.default_rng(0)
    none = mean_of(np.zeros(10), rng)
    assert (none.low, none.high) == (0, pytest.approx(0.2775, abs=1e-4))
    seven = mean_of([1] * 7 + [0] * 3, rng)
    assert (seven.low, seven.high) == (
        pytest.approx(0.3968, abs=1e-4),
        pytest.approx(0.8922, abs=1e-4),
    )


@pytest.mark.parametrize(
    ("parents", "stays", "luck"), [(0.9, 0.95, 0.4), (0.6, 0.85, 0.2), (0.95, 0.99, 0.5)]
)
def test_the_interval_of_a_recovery_covers_the_truth(
    parents: float, stays: float, luck: float
) -> None:
    """Pairs of answers with a known ratio: at least 93 of 100 intervals hold it, and are narrow.

    `stays` and `luck` are how often the variant is right where its parent is, and where it is not.
    """
    rng = np.random.default_rng(1)
    truth = stays + luck * (1 - parents) / parents
    held, widths = 0, []
    for _ in range(400):
        theirs = rng.random(300) < parents
        own = rng.random(300) < np.where(theirs, stays, luck)
        found = recovery_of(own, theirs, rng)
        held += found.low <= truth <= found.high
        widths.append(found.high - found.low)
    assert held >= 0.93 * 400
    assert np.mean(widths) < 0.2


def test_a_parent_without_a_right_answer_says_nothing() -> None:
    found = recovery_of([0, 1], [0, 0], np.random.default_rng(0))
    assert (found.low, found.value, found.high) == (0, 1, 1)


def test_graded_scores_are_bootstrapped_in_pairs() -> None:
    rng = np.random.default_rng(2)
    theirs = rng.random(200)
    found = recovery_of(0.9 * theirs, theirs, rng)
    assert found.low == pytest.approx(0.9)
    assert found.high == pytest.approx(0.9)
    assert mean_of(theirs, rng).low < theirs.mean() < mean_of(theirs, rng).high


def test_the_bootstrap_has_the_width_of_the_standard_error() -> None:
    rng = np.random.default_rng(4)
    sample = rng.normal(5, 2, 400)
    found = bootstrap(sample, np.ones(400), rng)
    half = 1.96 * sample.std(ddof=1) / 20
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    said, *_ = two_models()
    said.write(tmp_path / "parents" / "a.npz")
    again = Answers.read(tmp_path / "parents" / "a.npz")
    assert quality_of(again, said) == quality_of(said, said)
    assert again.benchmarks["quiz"].tolist() == said.benchmarks["quiz"].tolist()
    assert [path.name for path in (tmp_path / "parents").iterdir()] == ["a.npz"]


def test_what_is_asked_has_the_content_of_files_in_its_key(tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "a"}\n')
    before = Ask(text=text).key()
    assert before == Ask(text=text).key() != Ask().key()
    text.write_text('{"text": "b"}\n')
    assert Ask(text=text).key() != before


@pytest.mark.parametrize(
    ("kept", "benchmark", "verdict"),
    [
        ((0.99, 0.985, 1.0), None, "keeps"),
        ((0.99, 0.97, 1.0), None, "in doubt"),
        ((0.975, 0.97, 0.99), None, "loses"),
        ((0.99, 0.985, 1.0), (0.99, 0.95, 1.0), "in doubt"),
        ((0.99, 0.985, 1.0), (0.90, 0.85, 1.0), "loses"),
    ],
)
def test_what_an_interval_does_not_decide_is_marked(
    kept: tuple[float, ...], benchmark: tuple[float, ...] | None, verdict: str
) -> None:
    def score(at: tuple[float, ...]) -> Estimate:
        return Estimate(value=at[0], low=at[1], high=at[2], n=100)

    one = score((1, 1, 1))
    quality = Quality(
        perplexity=one,
        perplexity_ratio=one,
        agreement=one,
        kl_nats=one,
        task_accuracy=one,
        recovery=score(kept),
        benchmark_recovery={} if benchmark is None else {"quiz": score(benchmark)},
    )
    assert quality.verdict(0.02) == verdict


def test_what_the_parent_was_trained_on_is_left_out_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {name: tmp_path / name for name in ("parent", "child")}
    for name, folder in folders.items():
        folder.mkdir()
        Seen.of([f"What the {name} has seen."]).write(folder)
    parent, child = (Variant(name=name, model=str(folder)) for name, folder in folders.items())
    known: list[Seen] = []

    class Enough(Exception):
        pass

    def exam(tokenizer: object, *, seen: Seen, **asked: object) -> None:
        known.append(seen)
        raise Enough

    monkeypatch.setattr(quality, "_tokenizer", lambda variant: None)
    monkeypatch.setattr(quality, "exam", exam)
    with pytest.raises(Enough):
        quality._judge_apart(None, [child], parent, Ask(), EngineArgs(), tmp_path)  # type: ignore[arg-type]
    assert all(known[0].knows(f"What the {name} has seen.") for name in folders)
    assert not known[0].knows("What nobody has seen.")
