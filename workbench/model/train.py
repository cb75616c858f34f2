"""The recipe that made the shipped checkpoint: `train(folder)` makes it again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from workbench.model.batches import IGNORED, Batch, token_batches
from workbench.model.card import write_card
from workbench.model.corpus import documents
from workbench.model.jsonl import documents_of
from workbench.model.shape import ModelShape, build_model
from workbench.model.tasks import generate
from workbench.model.tokenizer import train_tokenizer

SEQ_LEN = 256
MUON_LR = 0.02
ADAMW_LR = 0.008
WARMUP_STEPS = 50
CHECKPOINT_EVERY = 100
TOKENIZER_TASKS, TOKENIZER_TASKS_COUNT = 50_000, 4
TOKENIZER_CHARACTERS = 20_000_000
"""As much of the text as the tokenizer learns from; documents come in no order."""
GPU_WORKERS = 6
"""Processes that make batches for a GPU, which else would wait for them."""
ANSWER_WEIGHT = 3.0  # answers are a tenth of what is learnt, but what the tasks are judged by
_RESUME_FILE, _CARD = "resume.pt", "card.json"

OnProgress = Callable[[int, int, float, float], None]


class ResumeError(ValueError):
    """The folder holds another run than the one that was asked for."""


@dataclass(frozen=True)
class Recipe:
    """Everything that the result of a run depends on, besides the code and the hardware."""

    seed: int
    steps: int
    batch_size: int
    task_share: float
    shape: ModelShape
    seq_len: int = SEQ_LEN
    text: str | None = None
    """Digest of the text, where it is not the shipped one."""

    def told(self) -> dict[str, Any]:
        """It as it is written down; what older runs could not choose is left out where it is theirs."""
        later = {"seq_len": SEQ_LEN, "text": None}
        return {k: v for k, v in asdict(self).items() if k not in later or v != later[k]}


@dataclass
class _Run:
    """A run between two steps: what a checkpoint keeps."""

    model: LlamaForCausalLM
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    wall_s: float = 0.0
    losses: list[float] = field(default_factory=list)


def train(
    out: Path,
    *,
    seed: int = 0,
    steps: int = 1600,
    config: ModelShape = ModelShape(),  # noqa: B008  (frozen)
    device: str = "auto",
    on_progress: OnProgress | None = None,
    resume: bool = True,
    batch_size: int = 16,
    task_share: float = 0.5,
    seq_len: int = SEQ_LEN,
    text: Path | None = None,
    heldout: Path | None = None,
    save_every: int | None = None,
    baseline: bool = True,
) -> Path:
    """Train a chat model on the standard library's text, or another, and on generated tasks.

    Muon moves the matrices and AdamW the rest, with a warm-up and a linear decay. On a CPU the same
    seed and number of threads give the same losses. Every `save_every` steps the run is kept
    in `out`, so that after a crash or an interrupt the next call goes on from there. With its
    defaults the call makes the shipped checkpoint.

    Args:    out: folder where weights, tokenizer and card.json lie at the end.
             seed: initial weights, order of the text, and questions.
             steps: optimiser steps of batch_size rows of seq_len tokens.
             config: the model's shape.
             device: "auto", "cpu" or "cuda"; auto takes the GPU if there is one.
             on_progress: called with step, total, loss and tokens per second after each step.
             resume: go on with a run kept in `out`; False starts anew.
             batch_size, task_share: rows in a batch, and the share of them that hold chats.
             text, heldout: JSONL to train and to judge on, in place of the shipped text.
             save_every: steps after which the run is kept; None is CHECKPOINT_EVERY.
             baseline: fit the n-grams that the card compares with; takes minutes with much text.
    Returns: out; at once, if it already holds this very run, finished.
    Raises:  ResumeError: out holds a run with another recipe.
             ValueError: steps below 1, a seq_len that the shape has no room for, one of text and heldout
                 without the other, or what `token_batches` refuses.
             InputError: files that hold no text.
    """
    if steps < 1:
        raise ValueError(f"steps(={steps}) must be at least 1")
    if seq_len > config.max_tokens:
        raise ValueError(f"seq_len(={seq_len}) must be at most max_tokens(={config.max_tokens})")
    if (text is None) != (heldout is None):
        raise ValueError(
            "give text and heldout together: a model is judged on what it has not seen"
        )
    out = Path(out)
    recipe = Recipe(
        seed,
        steps,
        batch_size,
        task_share,
        config,
        seq_len,
        None if text is None else _digest(text),
    )
    where = torch.device(_pick(device))
    if resume and _is_finished(out, recipe):
        return out
    out.mkdir(parents=True, exist_ok=True)
    if not resume:
        (out / _CARD).unlink(missing_ok=True)
        (out / _RESUME_FILE).unlink(missing_ok=True)
    saved = _load(out, recipe)
    tokenizer: PreTrainedTokenizerBase = train_tokenizer(
        _texts(recipe.seed, text), vocab_size=config.vocab, max_tokens=config.max_tokens
    )
    run = _start(recipe, tokenizer, where, saved)
    batches = token_batches(
        tokenizer,
        seed=seed,
        batch_size=batch_size,
        seq_len=seq_len,
        task_share=task_share,
        text=text,
        start=run.step,
        workers=GPU_WORKERS if where.type == "cuda" else 0,
    )
    _optimise(run, recipe, batches, where, out, on_progress, save_every or CHECKPOINT_EVERY)
    del batches
    run.model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_card(
        out,
        recipe=recipe.told(),
        losses=run.losses,
        wall_s=run.wall_s,
        seq_len=seq_len,
        device=where,
        heldout=heldout,
        train_text=text,
        baseline=baseline,
    )
    (out / _RESUME_FILE).unlink()
    return out


def _texts(seed: int, text: Path | None) -> list[str]:
    """What the tokenizer learns from: text, and chats counted so often that words become tokens."""
    chats = generate(TOKENIZER_TASKS, split="train", seed=seed)
    lines = [f" {task.question} {task.answer}" for task in chats]
    if text is None:
        return documents("train") + lines * TOKENIZER_TASKS_COUNT
    some, room = [], TOKENIZER_CHARACTERS
    for document in documents_of(text):
        some.append(document[: max(room, 0)])
        room -= len(document)
    return [document for document in some if document] + lines * TOKENIZER_TASKS_COUNT


def _digest(path: Path) -> str:
    if not path.is_file():
        documents_of(path)  # which says what is wrong
    return blake2b(path.read_bytes(), digest_size=8).hexdigest()


def _pick(device: str) -> str:
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f'device(={device!r}) must be "auto", "cpu" or "cuda"')
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _start(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    where: torch.device,
    saved: dict[str, Any] | None,
) -> _Run:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = build_model(recipe.shape, tokenizer).to(where)
    if where.type == "cuda":
        for layer in model.model.layers:  # all are alike, so one compilation serves them all
            layer.compile()
    run = _Run(model, _optimizers(model, recipe.shape))
    if saved is not None:
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(run.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        run.step, run.wall_s, run.losses = saved["step"], saved["wall_s"], saved["losses"]
    return run


def _optimizers(model: LlamaForCausalLM, shape: ModelShape) -> list[torch.optim.Optimizer]:
    """Muon's steps suit any width; AdamW's shrink with the root of it, as is usual."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = [
        torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.01),
        torch.optim.AdamW(
            rest, lr=ADAMW_LR * (256 / shape.hidden) ** 0.5, betas=(0.9, 0.95), weight_decay=0.0
        ),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _optimise(
    run: _Run,
    recipe: Recipe,
    batches: Iterator[Batch],
    where: torch.device,
    out: Path,
    on_progress: OnProgress | None,
    save_every: int,
) -> None:
    run.model.train()
    while run.step < recipe.steps:
        began = time.perf_counter()
        for optimizer in run.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * _schedule(run.step, recipe.steps)
        loss = _loss(run.model, next(batches), where)
        loss.backward()
        for optimizer in run.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        run.losses.append(loss.item())
        took = time.perf_counter() - began
        run.step += 1
        run.wall_s += took
        if run.step % save_every == 0 or run.step == recipe.steps:
            _save(out, recipe, run)
        if on_progress is not None:
            tokens = recipe.batch_size * recipe.seq_len
            on_progress(run.step, recipe.steps, run.losses[-1], tokens / took)


def _schedule(step: int, steps: int) -> float:
    """Learning rate as a share of its peak: linear warm-up, then linear decay to nothing."""
    warm = min(WARMUP_STEPS, max(1, steps // 10))
    return min((step + 1) / warm, (steps - step) / steps)


def _loss(model: LlamaForCausalLM, batch: Batch, where: torch.device) -> torch.Tensor:
    """Weighted mean cross entropy of what is learnt; no logits are made for the rest."""
    with torch.autocast(where.type, torch.bfloat16, enabled=bf16_pays(where)):
        inputs = batch.input_ids.to(where)
        hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
        labels = batch.labels[:, 1:].to(where)
        learnt = labels != IGNORED
        logits = model.lm_head(hidden[:, :-1][learnt])
    loss = F.cross_entropy(logits.float(), labels[learnt], reduction="none")
    is_chat = ~learnt.all(dim=1, keepdim=True)  # text is learnt whole, of chats only the answers
    weight = torch.where(is_chat, ANSWER_WEIGHT, 1.0).expand_as(labels)[learnt]
    return (loss * weight).sum() / weight.sum()


def bf16_pays(where: torch.device) -> bool:
    """Whether the device computes in bfloat16 faster than in float32."""
    if where.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported())


def _save(out: Path, recipe: Recipe, run: _Run) -> None:
    """Keep the run; the old checkpoint stays whole until the new one is."""
    state = {
        "recipe": recipe.told(),
        "model": run.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
        "step": run.step,
        "wall_s": run.wall_s,
        "losses": run.losses,
    }
    part = out / (_RESUME_FILE + ".part")
    torch.save(state, part)
    part.replace(out / _RESUME_FILE)


def _load(out: Path, recipe: Recipe) -> dict[str, Any] | None:
    if not (out / _RESUME_FILE).exists():
        return None
    saved: dict[str, Any] = torch.load(out / _RESUME_FILE, map_location="cpu")
    _check_same(out, saved["recipe"], recipe)
    return saved


def _is_finished(out: Path, recipe: Recipe) -> bool:
    if not (out / _CARD).exists():
        return False
    _check_same(out, json.loads((out / _CARD).read_text())["recipe"], recipe)
    return True


def _check_same(out: Path, found: dict[str, Any], recipe: Recipe) -> None:
    if found != recipe.told():
        raise ResumeError(
            f"{out} holds a run with {found}, not {recipe.told()}: take another folder, or "
            "resume=False to overwrite it"
        )
