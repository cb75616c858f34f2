"""Which prompts a step's prefill tokens belong to: the log counts them, the order of requests tells.

vLLM's scheduler goes on with a prompt that is half computed and then takes the next ones in the order
of arrival, each as far as the step's token budget allows. So the log and the requests together say
how many tokens each prompt got, after how many that were computed before. Where the counts disagree
(prefix cache, preemption, refused requests) the rest of the run is shared out evenly.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def contexts(steps: pd.DataFrame, requests: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """What the prefills of each step attend to.

    Args:    steps: as in Measurement.steps, in order of time.
             requests: as in Measurement.requests.
    Returns: (n_steps,) sum over prefills of tokens x context, and (n_steps,) tokens in the cache when
             the step starts that belong to prompts which are not computed yet.
    """
    tokens = steps["prefill_tokens"].to_numpy(dtype=np.int64)
    parts = steps["prefill_requests"].to_numpy(dtype=np.int64)
    # What is not known: equal shares, nothing computed before.
    pairs = tokens * (tokens / np.maximum(parts, 1) + 1) / 2
    half_done = np.zeros(len(tokens))
    prompts = _prompts(requests)
    computed, left = 0, 0
    for i in np.flatnonzero(tokens > 0):
        budget, count, sum_of_pairs, before = int(tokens[i]), 0, 0.0, computed
        while budget > 0:
            if left == 0:
                computed, left = 0, next(prompts, 0)
                if left == 0:
                    return pairs, half_done
            part = min(budget, left)
            sum_of_pairs += part * (computed + (part + 1) / 2)
            computed, left = computed + part, left - part
            budget, count = budget - part, count + 1
        if count != parts[i]:
            return pairs, half_done
        pairs[i], half_done[i] = sum_of_pairs, before
        if left == 0:
            computed = 0
    return pairs, half_done


def first_token_steps(steps: pd.DataFrame, requests: pd.DataFrame) -> IntArray | None:
    """Which step made the first token of each request that got one, in order of sending.

    Returns: (n,) positions in steps; None where the tokens of the log are not those of the requests.
    """
    ends = np.cumsum(np.fromiter(_prompts(requests), dtype=np.int64))
    computed = steps["prefill_tokens"].to_numpy(dtype=np.int64).cumsum()
    if len(ends) == 0 or len(computed) == 0 or computed[-1] != ends[-1]:
        return None
    return np.asarray(np.searchsorted(computed, ends), dtype=np.int64)


def _prompts(requests: pd.DataFrame) -> Iterator[int]:
    """Prompt lengths in the order in which the engine got them."""
    return iter([] if requests.empty else in_order(requests)["prompt_tokens"].astype(int).tolist())


def in_order(requests: pd.DataFrame) -> pd.DataFrame:
    """The requests that got a first token, as the engine got them."""
    sent = requests.dropna(subset=["sent_s", "first_token_s"])
    return sent.sort_values("sent_s", kind="stable")
