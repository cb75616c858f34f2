"""Prompts of the model's own tokens.

Random ids of the ordinary vocabulary: every variant of a model gets the same ones for the same
workload (a paired comparison), and no two prompts share a prefix, so that a prefix cache is only hit
where a run is repeated on the same engine (which the validity gate then says).
"""

from __future__ import annotations

import json
import zlib
from array import array
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import InputError, ModelError
from serving.plan import EngineArgs, Variant
from simulations.traffic import Schedule, Workload
from workbench.measure.outcome import Request

_SEGMENTS_KEPT = 65_536
_SIMULATED_ONLY = ("clients", "network", "priorities")
"""Fields of a Workload that the load client does not know."""


def requests_for(variant: Variant, workload: Workload, engine_args: EngineArgs) -> list[Request]:
    """The workload's schedule with a prompt for each request.

    Raises:  InputError: the workload has no request, one that the engine cannot hold, or something
                 that only the twin can do.
             ModelError: no tokenizer at `variant.model`.
    """
    for name in _SIMULATED_ONLY:
        if getattr(workload, name) is not None:
            raise InputError(
                f"{name} of the workload can only be simulated, not sent to a real engine",
                remedy="Leave it out of what is measured.",
            )
    schedule = workload.schedule()
    if not len(schedule):
        raise InputError(
            f"the workload has no request in duration_s(={workload.duration_s:g})",
            remedy="Raise the rate or the duration.",
        )
    longest = int((schedule.prompt_tokens + schedule.output_tokens).max())
    if longest > engine_args.max_model_len:
        raise InputError(
            f"the workload has a request of {longest} tokens, prompt and output together, beyond"
            f" max_model_len(={engine_args.max_model_len})",
            remedy="Shorten the requests (of a trace: a larger length_divisor), or raise max_model_len.",
        )
    vocabulary = ordinary_tokens(variant).astype(np.int32)
    # Two workloads never share prompts, even with one seed and on one engine.
    seed = [workload.seed, zlib.crc32(workload.model_dump_json().encode())]
    if schedule.segments is None:
        rng = np.random.default_rng(seed)
        prompts = (vocabulary[rng.integers(0, len(vocabulary), n)] for n in schedule.prompt_tokens)
    else:
        text = _Text(vocabulary, seed)
        prompts = (text.of(segments) for segments in schedule.segments)
    return [
        Request(
            scheduled_s=float(schedule.arrived_at_s[i]),
            prompt_token_ids=array("i", prompt.tobytes()),
            output_tokens=int(schedule.output_tokens[i]),
            **_follows(schedule, i),
        )
        for i, prompt in enumerate(prompts)
    ]


def _follows(schedule: Schedule, i: int) -> dict[str, Any]:
    """What a later turn of a conversation waits for, and where earlier answers stand in its prompt."""
    if schedule.after is None or schedule.think_s is None or schedule.after[i] < 0:
        return {}
    assert schedule.segments is not None
    starts = accumulate((tokens for _, tokens in schedule.segments[i]), initial=0)
    answers = tuple(
        (at, -1 - segment)
        for at, (segment, _) in zip(starts, schedule.segments[i], strict=False)
        if segment < 0
    )
    return {
        "after": int(schedule.after[i]),
        "think_s": float(schedule.think_s[i]),
        "answers": answers,
    }


class _Text:
    """The tokens of each segment: the same id gives the same ones, a shorter piece their beginning."""

    def __init__(self, vocabulary: npt.NDArray[np.int32], seed: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._seed = list(seed)
        self._tokens = lru_cache(maxsize=_SEGMENTS_KEPT)(self._drawn)

    def of(self, segments: Sequence[tuple[int, int]]) -> npt.NDArray[np.int32]:
        return np.concatenate([self._tokens(segment, tokens) for segment, tokens in segments])

    def _drawn(self, segment: int, tokens: int) -> npt.NDArray[np.int32]:
        # Where an answer will stand (an id below 0) anything will do.
        rng = np.random.default_rng([*self._seed, abs(segment), int(segment < 0)])
        return self._vocabulary[rng.integers(0, len(self._vocabulary), tokens)]


def ordinary_tokens(variant: Variant) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Ids of the model's vocabulary that are no special tokens: int array (n,), ascending."""
    local = Path(variant.model) / "tokenizer.json"
    if local.is_file():  # the usual case, and 10 s less than importing transformers
        declared = json.loads(local.read_text())
        special = {t["id"] for t in declared.get("added_tokens", []) if t.get("special")}
        vocabulary = declared.get("model", {}).get("vocab")
        if isinstance(vocabulary, dict):
            return np.array(sorted(set(vocabulary.values()) - special), dtype=np.int64)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(variant.model, revision=variant.revision)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no tokenizer at {variant.model!r}",
            remedy="Give a folder made by save_pretrained, or a hub id.",
        ) from error
    ids = set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
    return np.array(sorted(ids), dtype=np.int64)
