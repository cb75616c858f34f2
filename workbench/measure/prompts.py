"""Prompts of the model's own tokens.

Random ids of the ordinary vocabulary: every variant of a model gets the same ones for the same
workload (a paired comparison), and no two prompts share a prefix, so that a prefix cache is only hit
where a run is repeated on the same engine (which the validity gate then says).
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

from serving.errors import InputError, ModelError
from serving.plan import EngineArgs, Variant
from simulations.traffic import Workload
from workbench.measure.engine import Request


def requests_for(variant: Variant, workload: Workload, engine_args: EngineArgs) -> list[Request]:
    """The workload's schedule with a prompt for each request.

    Raises:  InputError: the workload has no request, or one that the engine cannot hold.
             ModelError: no tokenizer at `variant.model`.
    """
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
            remedy="Shorten prompt_tokens and output_tokens or raise max_model_len.",
        )
    vocabulary = ordinary_tokens(variant)
    # Two workloads never share prompts, even with one seed and on one engine.
    rng = np.random.default_rng([workload.seed, zlib.crc32(workload.model_dump_json().encode())])
    return [
        Request(
            scheduled_s=float(at_s),
            prompt_token_ids=vocabulary[rng.integers(0, len(vocabulary), length)].tolist(),
            output_tokens=int(output),
        )
        for at_s, length, output in zip(
            schedule.arrived_at_s, schedule.prompt_tokens, schedule.output_tokens, strict=True
        )
    ]


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
