"""Interpolated modified Kneser-Ney n-grams: the baseline that a language model has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Order:
    """What one order knows: its k-grams, and for each context what it gives and what it keeps."""

    keys: Ints  # (n_grams,) sorted: id of the first k-1 tokens * vocab_size + last token
    discounted: Floats  # (n_grams,) count less its discount
    total: Floats  # (n_contexts,) counts after the context
    kept_back: Floats  # (n_contexts,) discounts after the context, given to the lower order


class NgramModel:
    """Predict a token from the n-1 before it.

    P_k(w | h) = (c(hw) - D(c)) / c(h) + kept_back(h) / c(h) * P_{k-1}(w | h'), where h' is h
    without its oldest token, P_0 is uniform, c counts occurrences in the highest order and
    distinct left neighbours below it, and D takes one of three values by the count. Everything is
    a sorted array: a k-gram is known by the id of its first k-1 tokens and its last token.

    Args:   tokens: int array (n_tokens,), the training text.
            vocab_size: how many different tokens there are.
            n: the highest order, at least 1.
    Raises: ValueError: n below 1, fewer than n tokens, or a token outside the vocabulary.
    Source: Chen and Goodman 1998, "An empirical study of smoothing techniques", equation 25.
    """

    def __init__(self, tokens: Ints, *, vocab_size: int, n: int) -> None:
        if n < 1:
            raise ValueError(f"n(={n}) must be at least 1")
        if len(tokens) < n:
            raise ValueError(f"tokens has {len(tokens)} entries, give at least n(={n})")
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            raise ValueError(
                f"tokens must lie in 0..{vocab_size - 1}: raise vocab_size(={vocab_size})"
            )
        self.n, self.vocab_size = n, vocab_size
        self._orders = self._count(np.asarray(tokens, dtype=np.int64))

    def _count(self, tokens: Ints) -> list[_Order]:
        ids = np.zeros(len(tokens) + 1, dtype=np.int64)  # the 0-gram before every token
        keys, counts, suffixes = [], [], []
        for k in range(1, self.n + 1):
            previous, end = ids, len(tokens) - k + 1
            unique, first, ids, count = np.unique(
                previous[:end] * self.vocab_size + tokens[k - 1 :],
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            keys.append(unique)
            counts.append(count)
            suffixes.append(previous[first + 1])  # the same k-gram without its oldest token
        for k in range(self.n - 1):
            counts[k] = np.bincount(suffixes[k + 1], minlength=len(keys[k]))
        sizes = [1, *map(len, keys)]
        return [self._order(keys[k], counts[k], sizes[k]) for k in range(self.n)]

    def _order(self, keys: Ints, counts: Ints, n_contexts: int) -> _Order:
        discount = _discounts(counts)[np.minimum(counts, 3)]
        context = keys // self.vocab_size
        return _Order(
            keys=keys,
            discounted=counts - discount,
            total=np.bincount(context, counts, n_contexts).astype(np.float64),
            kept_back=np.bincount(context, discount, n_contexts).astype(np.float64),
        )

    def probabilities(self, tokens: Ints) -> Floats:
        """Give the probability of each token after those before it.

        Args:    tokens: int array (n_tokens,); the first n-1 have a shorter context.
        Returns: float array (n_tokens,).
        """
        tokens = np.asarray(tokens, dtype=np.int64)
        result = np.full(len(tokens), 1.0 / self.vocab_size)
        ids = np.zeros(len(tokens) + 1, dtype=np.int64)
        for k, order in enumerate(self._orders, start=1):
            context = ids[: max(len(tokens) - k + 1, 0)]
            wanted = np.where(context < 0, -1, context * self.vocab_size + tokens[k - 1 :])
            ids = np.minimum(np.searchsorted(order.keys, wanted), len(order.keys) - 1)
            ids = np.where(order.keys[ids] == wanted, ids, -1)
            total = np.where(context < 0, 0.0, order.total[context])
            seen = total > 0  # after an unseen context the lower order stands as it is
            own = np.where(ids < 0, 0.0, order.discounted[ids])[seen]
            lower = order.kept_back[context[seen]] * result[k - 1 :][seen]
            result[k - 1 :][seen] = (own + lower) / total[seen]
        return result


def _discounts(counts: Ints) -> Floats:
    """D for a count of 0, 1, 2 and 3 or more, from how many k-grams occur 1, 2, 3 and 4 times."""
    n1, n2, n3, n4 = (max(int((counts == c).sum()), 1) for c in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    estimate = [0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.clip(estimate, [0.0, 0.1, 0.1, 0.1], [0.0, 0.9, 1.9, 2.9])
