"""In words: which term of a fitted model dominates where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from simulations.latency import LatencyModel

TERMS = ("host", "weights", "compute", "kv", "attention")
"""Host: per step, with prefill more, per sequence and between steps. Weights or compute: the two sides
of the knee."""
_BOUND = {
    "host": "host-bound",
    "weights": "memory-bound (weights)",
    "kv": "memory-bound (KV cache)",
    "compute": "compute-bound (matrices)",
    "attention": "compute-bound (attention)",
}
_NAMES = {
    "host": "the host",
    "weights": "reading the weights",
    "kv": "reading the KV cache",
    "compute": "the matrices' arithmetic",
    "attention": "prefill attention",
}
_NO_KNEE = "bound by fixed costs (host and weights were not told apart)"
_BATCHES = (1, 8, 32, 128)


class _Region(NamedTuple):
    name: str
    prefill_tokens: float
    prefill_seqs: float
    decode_seqs: float
    kv_tokens: float


def check(model: LatencyModel) -> pd.DataFrame:
    """Where the time of a step goes, at steps within what was fitted.

    Returns: one row per region: region, step_ms, the shares of TERMS (0 to 1), bound (memory-bound,
             compute-bound or host-bound, and by what) and words.
    """
    return pd.DataFrame([_row(model, region) for region in _regions(model)])


def knee_words(model: LatencyModel) -> str:
    """Up to how many tokens a step reads weights for longer than it computes."""
    if model.floor_s <= 0 or model.per_token_s <= 0:
        return (
            "No knee was found: at no batch that was measured does reading the weights take longer"
            " than computing, or the data do not tell it from the fixed cost of a step."
        )
    tokens = model.floor_s / model.per_token_s
    return (
        f"Reading the weights takes {1e3 * model.floor_s:.2f} ms; steps of up to {tokens:.0f} tokens"
        " are free beside it, above that each costs"
        f" {1e6 * model.per_token_s:.1f} us."
    )


def _regions(model: LatencyModel) -> Iterator[_Region]:
    seen = model.fitted_range
    # What a sequence held on average in the fullest step.
    held = seen.kv_tokens / max(seen.decode_seqs, 1)
    for batch in sorted({*(b for b in _BATCHES if b < seen.decode_seqs), seen.decode_seqs}):
        if batch:
            yield _Region(f"decode, batch {batch}", 0, 0, batch, batch * held / 2)
    if seen.decode_seqs:
        name = f"decode, batch {seen.decode_seqs}, {seen.kv_tokens} KV tokens"
        yield _Region(name, 0, 0, seen.decode_seqs, seen.kv_tokens)
    for tokens in sorted({min(512, seen.prefill_tokens), seen.prefill_tokens}):
        if tokens:
            yield _Region(f"prefill of {tokens} tokens", tokens, 1, 0, 0)
    if seen.decode_seqs and seen.prefill_tokens:
        tokens, batch = min(512, seen.prefill_tokens), seen.decode_seqs
        name = f"prefill of {tokens} tokens beside {batch} decodes"
        yield _Region(name, tokens, 1, batch, batch * held / 2)


def _row(model: LatencyModel, region: _Region) -> dict[str, float | str]:
    tokens, seqs = region.prefill_tokens, region.prefill_seqs
    attention = tokens * (tokens + 1) / 2
    step_s = float(model.step_time_s(tokens, region.decode_seqs, region.kv_tokens, attention, seqs))
    whole_s = max(step_s + model.step_overhead_s, 1e-12)
    host_s = model.base_s + model.per_seq_s * (region.decode_seqs + seqs) + model.step_overhead_s
    host_s += model.prefill_step_s * (tokens > 0)
    kv_s = model.per_kv_token_s * region.kv_tokens
    attention_s = model.per_prefill_attention_s * attention
    matrices_s = whole_s - host_s - kv_s - attention_s
    computes = matrices_s > 1.000001 * model.floor_s or model.floor_s == 0
    spent = {
        "host": host_s,
        "weights": 0.0 if computes else matrices_s,
        "compute": matrices_s if computes else 0.0,
        "kv": kv_s,
        "attention": attention_s,
    }
    shares = {name: max(0.0, seconds / whole_s) for name, seconds in spent.items()}
    knee = model.floor_s > 0
    bound = _bound(shares, knee=knee)
    return {
        "region": region.name,
        "step_ms": 1e3 * whole_s,
        **shares,
        "bound": bound,
        "words": f"{region.name}: {1e3 * whole_s:.1f} ms, {bound}; {_told(shares, knee=knee)}",
    }


def _bound(shares: dict[str, float], *, knee: bool) -> str:
    """Memory, compute or host, whichever has most of the step, and which term of it."""
    groups = {
        "host": shares["host"],
        "memory": shares["weights"] + shares["kv"],
        "compute": shares["compute"] + shares["attention"],
    }
    largest = max(groups, key=lambda name: groups[name])
    if largest == "host":
        return _BOUND["host"] if knee else _NO_KNEE
    pair = ("weights", "kv") if largest == "memory" else ("compute", "attention")
    return _BOUND[max(pair, key=lambda name: shares[name])]


def _told(shares: dict[str, float], *, knee: bool) -> str:
    """The shares that count, the largest first."""
    names = _NAMES if knee else _NAMES | {"host": "fixed costs of a step and a sequence"}
    ordered = sorted(shares, key=lambda name: -shares[name])
    told = [f"{shares[n]:.0%} {names[n]}" for n in ordered if shares[n] >= 0.01]
    return ", ".join(told)
