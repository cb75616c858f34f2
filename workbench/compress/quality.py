"""What a variant keeps of its parent, on text and tasks that neither was fitted to.

Perplexity, agreement and KL come from held-out text, sequence by sequence; task accuracy from held-out
questions. An answer counts where every token of it, and the end after it, is the most likely one given
the true tokens before: by induction that is exactly when greedy decoding gives the answer, and it takes
one forward pass instead of one per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from serving.plan import Quality
from serving.values import Estimate
from workbench.compress.checkpoint import load

OnProgress = Callable[[str, float], None]
_BATCH = 16
_BOOTSTRAP = 1000
Z = 1.959964


def measure_quality(
    model: str | Path,
    parent: str | Path,
    *,
    tokens: int = 32_768,
    tasks: int = 500,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Quality:
    """Judge a variant against its parent on the same text and the same questions.

    Args:    tokens: of held-out text.
             tasks: held-out questions.
    Returns: Quality; intervals are 95 %: bootstrap over sequences, Wilson for the accuracy.
    Raises:  ModelError: a model that cannot be loaded.
    """
    judged, tokenizer = load(model)
    reference, _ = (judged, None) if str(model) == str(parent) else load(parent)
    text = _text_scores(judged, reference, tokenizer, tokens, on_progress)
    right = _answers(judged, tokenizer, tasks, seed)
    same = right if reference is judged else _answers(reference, tokenizer, tasks, seed)
    rng = np.random.default_rng(seed)
    return Quality(
        perplexity=_bootstrap(text[:, 0], text[:, 3], rng, np.exp),
        agreement=_bootstrap(text[:, 1], text[:, 3], rng),
        kl_nats=_bootstrap(text[:, 2], text[:, 3], rng),
        task_accuracy=wilson(int(right.sum()), len(right)),
        relative_task_accuracy=float(right.sum() / same.sum()) if same.any() else 1.0,
    )


def wilson(successes: int, n: int) -> Estimate:
    """A proportion with its 95 % Wilson interval."""
    p = successes / n
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    # Rounding must not put the proportion itself outside.
    return Estimate(value=p, low=min(p, centre - half), high=max(p, centre + half), n=n)


def _text_scores(
    judged: Any, reference: Any, tokenizer: Any, tokens: int, on_progress: OnProgress | None
) -> Any:
    """(n_sequences, 4): summed loss, agreements, KL, and tokens judged."""
    import torch

    from workbench.model.batches import heldout_tokens

    rows = heldout_tokens(tokenizer, max_tokens=tokens)
    scores = []
    with torch.no_grad():
        for begin in range(0, len(rows), _BATCH):
            batch = rows[begin : begin + _BATCH]
            log_p = torch.log_softmax(judged(batch).logits[:, :-1].float(), dim=-1)
            log_q = log_p
            if reference is not judged:
                log_q = torch.log_softmax(reference(batch).logits[:, :-1].float(), dim=-1)
            loss = -log_p.gather(-1, batch[:, 1:, None]).sum(dim=(1, 2))
            agree = (log_p.argmax(-1) == log_q.argmax(-1)).sum(dim=1)
            kl = (log_q.exp() * (log_q - log_p)).sum(dim=(1, 2)).clamp(min=0)
            judged_tokens = torch.full_like(loss, batch.shape[1] - 1)
            scores.append(torch.stack([loss, agree.float(), kl, judged_tokens], dim=1))
            if on_progress is not None:
                on_progress("judging text", 0.8 * (begin + len(batch)) / len(rows))
    return torch.cat(scores).numpy().astype(np.float64)


def _answers(model: Any, tokenizer: Any, n: int, seed: int) -> Any:
    """bool (n,): which questions are answered right."""
    import torch

    from workbench.model.tasks import generate

    questions = generate(n, split="heldout", seed=seed)
    ends = tokenizer.eos_token_id
    rows, starts = [], []
    for task in questions:
        prompt = tokenizer.apply_chat_template(
            task.messages, add_generation_prompt=True, return_dict=False
        )
        told = [*task.messages, {"role": "assistant", "content": task.answer}]
        chat = tokenizer.apply_chat_template(told, return_dict=False)
        # What a template puts behind the end of the answer is never generated.
        rows.append(chat[: chat.index(ends, len(prompt)) + 1])
        starts.append(len(prompt))
    right = np.zeros(n, dtype=bool)
    order = sorted(range(n), key=lambda i: len(rows[i]))
    with torch.no_grad():
        for begin in range(0, n, 4 * _BATCH):
            chosen = order[begin : begin + 4 * _BATCH]
            width = max(len(rows[i]) for i in chosen)
            batch = torch.tensor([rows[i] + [ends] * (width - len(rows[i])) for i in chosen])
            likely = model(batch).logits.argmax(-1)
            for row, i in enumerate(chosen):
                span = slice(starts[i] - 1, len(rows[i]) - 1)
                wanted = torch.tensor(rows[i][starts[i] :])
                right[i] = bool((likely[row, span] == wanted).all())
    return right


def _bootstrap(
    totals: Any,
    counts: Any,
    rng: np.random.Generator,
    transform: Callable[[Any], Any] | None = None,
) -> Estimate:
    """Ratio of sums over sequences with its percentile interval."""
    apply = transform or (lambda x: x)
    picked = rng.integers(0, len(totals), (_BOOTSTRAP, len(totals)))
    draws = apply(totals[picked].sum(axis=1) / counts[picked].sum(axis=1))
    low, high = np.percentile(draws, [2.5, 97.5])
    value = float(apply(totals.sum() / counts.sum()))
    return Estimate(value=value, low=float(low), high=float(high), n=int(counts.sum()))
