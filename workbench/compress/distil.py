"""Distillation: a student learns the teacher's distribution over the next token.

Loss: T^2 KL(teacher || student) of the logits at temperature T, on text and tasks, where the recipe of
the parent would learn as well. A checkpoint every `save_every` steps makes it resumable; a resumed run
gives the same student as one that was never cut off.

Source:  Hinton et al., arXiv 1503.02531.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.errors import InputError
from workbench.compress.checkpoint import load, written

OnProgress = Callable[[str, float], None]
SEQ_LEN = 256


def distil(
    teacher: str | Path,
    student: str | Path,
    out: Path,
    *,
    tokens: int,
    batch_size: int = 8,
    temperature: float = 1.0,
    learning_rate: float = 1e-3,
    save_every: int = 100,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Path:
    """Train the student on the teacher's logits for a number of tokens, and write it.

    Raises:  InputError: a temperature or a number of tokens that is not positive.
             ModelError: a model that cannot be loaded.
    """
    import torch

    from workbench.model.batches import IGNORED, token_batches

    if tokens <= 0 or temperature <= 0:
        raise InputError(
            f"tokens(={tokens}) and temperature(={temperature}) must be > 0", remedy="Raise them."
        )
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parent, tokenizer = load(teacher)
    learner, _ = load(student, dtype=torch.float32)
    parent.to(device)
    learner.to(device).train()
    dtype = parent.dtype
    steps = max(1, math.ceil(tokens / (batch_size * SEQ_LEN)))
    optimizer = torch.optim.AdamW(learner.parameters(), lr=learning_rate, weight_decay=0.0)
    saved = out.with_name(out.name + ".resume.pt")
    begin = _resume(saved, learner, optimizer)
    batches = token_batches(
        tokenizer, seed=seed, batch_size=batch_size, seq_len=SEQ_LEN, start=begin
    )
    for step in range(begin, steps):
        batch = next(batches)
        inputs, learnt = batch.input_ids.to(device), batch.labels.to(device) != IGNORED
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _schedule(step, steps)
        with torch.no_grad():
            wanted = parent(inputs).logits[:, :-1]
        with torch.autocast(device, dtype=torch.bfloat16):
            got = learner(inputs).logits[:, :-1]
        mask = learnt[:, 1:]
        loss = _kl(wanted[mask].float(), got[mask].float(), temperature)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if on_progress is not None:
            on_progress(
                f"distilling, step {step + 1}/{steps}, KL {loss.item():.3f}", (step + 1) / steps
            )
        if (step + 1) % save_every == 0 and step + 1 < steps:
            _save(saved, learner, optimizer, step + 1)
    learner.to(dtype)
    with written(out) as folder:
        learner.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    saved.unlink(missing_ok=True)
    return out


def _kl(wanted: Any, got: Any, temperature: float) -> Any:
    import torch.nn.functional as F

    return temperature**2 * F.kl_div(
        F.log_softmax(got / temperature, dim=-1),
        F.log_softmax(wanted / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )


def _schedule(step: int, steps: int) -> float:
    """Warm up over a twentieth, then fall to a tenth in a half cosine."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _save(path: Path, learner: Any, optimizer: Any, step: int) -> None:
    import torch

    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"m": learner.state_dict(), "o": optimizer.state_dict(), "step": step}, partial)
    partial.replace(path)


def _resume(path: Path, learner: Any, optimizer: Any) -> int:
    import torch

    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    learner.load_state_dict(state["m"])
    optimizer.load_state_dict(state["o"])
    return int(state["step"])
