from __future__ import annotations

import numpy as np
import pytest

from workbench.model.ngram import Ints, NgramModel

VOCAB = 7


def _text(n_tokens: int, seed: int = 0) -> Ints:
    """A Markov chain in which two tokens in three follow from the one before."""
    rng = np.random.default_rng(seed)
    tokens = [0]
    for _ in range(n_tokens - 1):
        follows = (3 * tokens[-1] + 1) % (VOCAB - 1)
        tokens.append(follows if rng.random() < 2 / 3 else int(rng.integers(VOCAB - 1)))
    return np.array(tokens)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("context", [[], [3], [1, 4, 1], [0, 1, 4, 1], [6, 6, 6, 6, 6], [2, 6]])
def test_probabilities_sum_to_one(n: int, context: list[int]) -> None:
    model = NgramModel(_text(500), vocab_size=VOCAB, n=n)
    after = [model.probabilities(np.array([*context, word]))[-1] for word in range(VOCAB)]
    assert sum(after) == pytest.approx(1.0, abs=1e-12)
    assert min(after) > 0


def test_bigram_by_hand() -> None:
    """0 1 0 2 0 1 with all discounts worked out from equation 17 of the source."""
    model = NgramModel(np.array([0, 1, 0, 2, 0, 1]), vocab_size=3, n=2)
    # Bigrams 01 x2, 10, 02, 20: n1 = 3, n2 = 1, so Y = 3/5, D1 = 1 - 2/5, D2 = 2 - 9/5.
    d1, d2 = 0.6, 0.2
    # Distinct left neighbours: 0 has 2, 1 and 2 have 1 each: n1 = 2, n2 = 1, Y = 1/2.
    e1, e2 = 0.5, 0.5
    kept = (2 * e1 + e2) / 4
    unigram = [(2 - e2) / 4 + kept / 3, (1 - e1) / 4 + kept / 3, (1 - e1) / 4 + kept / 3]
    expected = (2 - d2) / 3 + (d1 + d2) / 3 * unigram[1]
    assert model.probabilities(np.array([0, 1]))[1] == pytest.approx(expected)
    assert model.probabilities(np.array([0]))[0] == pytest.approx(unigram[0])


def test_lower_orders_count_contexts_and_not_occurrences() -> None:
    """The point of Kneser-Ney: a frequent token of one context is no guess in a new one."""
    tokens = np.array([1, 2] * 40 + [3, 4, 5, 4, 0, 4, 6, 4])  # 2 is frequent, only ever after 1
    model = NgramModel(tokens, vocab_size=8, n=2)
    two, four = (model.probabilities(np.array([7, word]))[1] for word in (2, 4))
    assert four > two


def test_a_bigram_learns_a_markov_chain_to_its_entropy() -> None:
    model = NgramModel(_text(50_000), vocab_size=VOCAB, n=2)
    found = model.probabilities(_text(20_000, seed=1))
    likely = 2 / 3 + 1 / 3 / (VOCAB - 1)
    rare = 1 / 3 / (VOCAB - 1)
    entropy = -(likely * np.log(likely) + (VOCAB - 2) * rare * np.log(rare))
    assert -np.log(found).mean() == pytest.approx(entropy, rel=0.01)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=r"n\(=0\)"):
        NgramModel(_text(10), vocab_size=VOCAB, n=0)
    with pytest.raises(ValueError, match="vocab_size"):
        NgramModel(_text(10), vocab_size=2, n=2)
    with pytest.raises(ValueError, match="2 entries"):
        NgramModel(_text(2), vocab_size=VOCAB, n=3)
