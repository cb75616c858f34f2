"""How good a trained model is: perplexity beside the n-gram baseline, and task accuracy."""

from __future__ import annotations

import json
import math
import os
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from workbench.model.batches import encode_documents, encode_file, heldout_tokens
from workbench.model.ngram import NgramModel
from workbench.model.tasks import KINDS, Task, generate, is_correct

HIGHEST_ORDER = 5
TASKS = 2000
HELDOUT_TOKENS = 500_000
_ROWS_AT_A_TIME = 64
_ANSWER_TOKENS = 24


def write_card(
    folder: Path,
    *,
    recipe: dict[str, Any],
    losses: Sequence[float],
    wall_s: float,
    seq_len: int,
    device: torch.device,
    heldout: Path | None = None,
    train_text: Path | None = None,
    baseline: bool = True,
) -> dict[str, Any]:
    """Judge the model in a folder as it was saved, and write `card.json` beside it.

    Args:    folder: a checkpoint with its tokenizer.
             recipe: what the model was trained with, written down as it is.
             losses: the training loss of each step.
             wall_s: how long the training took.
             seq_len: tokens in a row of the held-out text.
             device: where it was trained, and is judged.
             heldout, train_text: JSONL in place of the shipped text; at most HELDOUT_TOKENS are judged.
             baseline: fit the n-grams too.
    Returns: what was written.
    """
    model = AutoModelForCausalLM.from_pretrained(folder).to(device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = heldout_tokens(tokenizer, max_tokens=HELDOUT_TOKENS, seq_len=seq_len, text=heldout)
    nll = negative_log_likelihood(model, rows)
    tokens_seen = len(losses) * recipe["batch_size"] * seq_len
    card = {
        "recipe": recipe,
        "tokens_seen": tokens_seen,
        "wall_s": round(wall_s, 1),
        "tokens_per_s": round(tokens_seen / max(wall_s, 1e-9)),
        "hardware": _hardware(device),
        "versions": _versions(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "losses_every_50_steps": [round(loss, 4) for loss in losses[::50]],
        "heldout": {
            "tokens": nll.numel(),
            "perplexity": math.exp(float(nll.mean())),
            "bits_per_byte": float(nll.sum()) / math.log(2) / _scored_bytes(tokenizer, rows),
            **({"ngram": ngram_perplexity(tokenizer, rows, train_text)} if baseline else {}),
        },
        "tasks": accuracy(model, tokenizer, generate(TASKS, split="heldout", seed=1)),
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    return card


@torch.inference_mode()  # type: ignore[untyped-decorator]
def negative_log_likelihood(model: PreTrainedModel, rows: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of each token of a row but the first.

    Args:    rows: int64 (n, seq).
    Returns: float tensor (n, seq - 1), nats.
    """
    parts = []
    for ids in rows.to(model.device).split(_ROWS_AT_A_TIME):
        logits = model(input_ids=ids).logits[:, :-1].float()
        parts.append(F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").cpu())
    return torch.cat(parts)


def ngram_perplexity(
    tokenizer: PreTrainedTokenizerBase, rows: torch.Tensor, text: Path | None = None
) -> dict[str, Any]:
    """Fit the n-gram baseline to all training text; judge it on the tokens the model is judged on.

    The baseline may look back over the beginning of a row, which the model may not.

    Args:    text: JSONL with the training text; None is the shipped one.
    Returns: perplexity of each order, and the best order with its perplexity.
    """
    train = encode_documents(tokenizer, "train") if text is None else encode_file(tokenizer, text)
    stream = rows.flatten().numpy()
    scored = np.arange(len(stream)) % rows.shape[1] > 0
    by_order = {}
    for n in range(1, HIGHEST_ORDER + 1):
        found = NgramModel(train, vocab_size=len(tokenizer), n=n).probabilities(stream)
        by_order[n] = math.exp(-float(np.log(found[scored]).mean()))
    best = min(by_order, key=lambda n: by_order[n])
    return {"n": best, "perplexity": by_order[best], "perplexity_by_n": by_order}


def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task]
) -> dict[str, Any]:
    """Ask the model the tasks and count the greedy answers that match exactly.

    Returns: n, correct, accuracy and its 95 % Wilson interval, for all tasks and for each kind.
    """
    answers = greedy_answers(model, tokenizer, tasks)
    asked = Counter(task.kind for task in tasks)
    right = Counter(t.kind for t, a in zip(tasks, answers, strict=True) if is_correct(t, a))
    by_kind = {kind: _share(right[kind], asked[kind]) for kind in KINDS if asked[kind]}
    return {**_share(right.total(), len(tasks)), "by_kind": by_kind}


@torch.inference_mode()  # type: ignore[untyped-decorator]
def greedy_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task]
) -> list[str]:
    """Return the model's most likely answer to each task, without its special tokens."""
    answers: list[str] = []
    for begin in range(0, len(tasks), _ROWS_AT_A_TIME):
        chats = [task.messages for task in tasks[begin : begin + _ROWS_AT_A_TIME]]
        inputs = tokenizer.apply_chat_template(
            chats,
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
            tokenizer_kwargs={"padding_side": "left"},
        ).to(model.device)
        output = model.generate(**inputs, max_new_tokens=_ANSWER_TOKENS, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        answers += tokenizer.batch_decode(new, skip_special_tokens=True)
    return answers


def wilson_interval(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson interval of a share, 95 % unless z says otherwise."""
    share, spread = correct / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return centre - half, centre + half


def _share(correct: int, n: int) -> dict[str, Any]:
    low, high = wilson_interval(correct, n)
    return {"n": n, "correct": correct, "accuracy": correct / n, "wilson_95": [low, high]}


def _scored_bytes(tokenizer: PreTrainedTokenizerBase, rows: torch.Tensor) -> int:
    return sum(len(text.encode()) for text in tokenizer.batch_decode(rows[:, 1:]))


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name()}, {os.cpu_count()} CPU threads"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("torch", "transformers", "tokenizers", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
