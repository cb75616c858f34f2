"""Distillation: a student learns the teacher's distribution over the next token.

Loss, of every position that the parent's own recipe would learn:

    (1 - label_weight) T^2 KL(teacher || student) + label_weight cross entropy + hidden_weight hidden

where the KL is of the softmax at temperature T, over the whole vocabulary or over the teacher's top_k
tokens and one bucket for the rest, and `hidden` compares what leaves the layers. The loop is the Hugging
Face Trainer's: checkpoints, bf16, several GPUs through accelerate; a run that was cut off goes on, and
gives the same student as one that was not.

Source:  Hinton et al., arXiv 1503.02531; Muralidharan et al., arXiv 2407.14679 (logits and hidden
         states, from a pruned parent); Tung & Mori, arXiv 1907.09682 (similarities of hidden states,
         where widths differ).
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from serving.errors import EngineError, InputError
from serving.values import Value, one_line
from workbench.compress.checkpoint import check_not_quantized
from workbench.progress import OnProgress

SEQ_LEN = 256


class Distillation(Value):
    """One distillation, as the processes that do it read it."""

    teacher: str
    student: str | None = None
    """The checkpoint to begin with; None begins with random weights."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Without a student: what differs from the teacher's config.json, for example num_hidden_layers."""
    out: Path
    tokens: int = Field(gt=0)
    batch_size: int = Field(8, gt=0)
    """Rows in a step, over all processes."""
    seq_len: int = Field(SEQ_LEN, ge=2)
    temperature: float = Field(1.0, gt=0)
    top_k: int | None = Field(None, gt=0)
    hidden_weight: float = Field(0.0, ge=0)
    label_weight: float = Field(0.0, ge=0, le=1)
    learning_rate: float = Field(1e-3, gt=0)
    save_every: int = Field(100, gt=0)
    snapshots: int = Field(0, ge=0)
    """So many students on the way are kept, each after twice the tokens of the one before."""
    text: Path | None = None
    task_share: float | None = Field(None, ge=0, le=1)
    """Share of the rows with shipped tasks; None is half with the shipped text, none with another."""
    seed: int = Field(0, ge=0)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, math.ceil(self.tokens / (self.batch_size * self.seq_len)))

    @property
    def training_folder(self) -> Path:
        """Where the run keeps its checkpoints until it is whole."""
        return self.out.with_name(self.out.name + ".training")

    @property
    def request(self) -> Path:
        """What the run was asked for: another request does not go on with its checkpoints."""
        return self.training_folder / "request.json"

    @property
    def snapshot_folder(self) -> Path:
        """Where students on the way are kept, by their number of tokens."""
        return snapshot_folder(self.out)

    def snapshot_steps(self) -> dict[int, int]:
        """Step after which a student is kept -> tokens that it has learnt from."""
        steps = {self.steps >> back for back in range(1, self.snapshots + 1)} - {0}
        return {step: step * self.batch_size * self.seq_len for step in sorted(steps)}


def snapshot_folder(out: Path) -> Path:
    """Where the students on the way to one in `out` are kept."""
    return out.with_name(out.name + ".snapshots")


def distil(
    teacher: str | Path,
    student: str | Path | None,
    out: Path,
    *,
    tokens: int,
    processes: int | None = None,
    on_progress: OnProgress | None = None,
    **how: Any,
) -> Path:
    """Train the student on the teacher's distribution for a number of tokens, and write it.

    Args:    student: where to begin, for example a pruned parent; None with `config` begins anew.
             processes: how many train together; None is one per GPU.
             how: further fields of Distillation: temperature, top_k, hidden_weight, ...
    Raises:  InputError: a value that cannot be, or an unknown one.
             ModelError: a model that cannot be loaded.
    """
    try:
        asked = Distillation(
            teacher=str(teacher),
            student=None if student is None else str(student),
            out=out,
            tokens=tokens,
            **how,
        )
    except ValidationError as error:
        raise InputError(
            one_line(error), remedy="See `workbench compress distil --help`."
        ) from None
    if asked.student is None and not asked.config:
        raise InputError(
            "a student needs a checkpoint or a configuration to begin with",
            remedy="Give student, or config={'num_hidden_layers': 2}.",
        )
    for model in (asked.teacher, asked.student):
        if model is not None:
            check_not_quantized(model)
    together = processes or _gpus() or 1
    if asked.batch_size % together:
        raise InputError(
            f"batch_size(={asked.batch_size}) must be a multiple of {together} processes",
            remedy=f"Take {math.ceil(asked.batch_size / together) * together}.",
        )
    _go_on_or_begin(asked)
    if together == 1:
        from workbench.compress.training import train

        train(asked, on_progress)
    else:
        _train_together(asked, together, on_progress)
    shutil.rmtree(asked.training_folder, ignore_errors=True)
    return out


def _go_on_or_begin(asked: Distillation) -> None:
    """Keep what a run of the same request left, and nothing of any other."""
    if not asked.request.is_file() or Distillation.read(asked.request) != asked:
        for folder in (asked.training_folder, asked.snapshot_folder):
            shutil.rmtree(folder, ignore_errors=True)
        asked.write(asked.request)


def _gpus() -> int:
    import torch

    return int(torch.cuda.device_count())


def _train_together(asked: Distillation, processes: int, on_progress: OnProgress | None) -> None:
    """Several processes, each with a part of every batch; the first one tells how far they are."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [
        f"--nproc-per-node={processes}",
        "-m",
        "workbench.compress.training",
        str(asked.request),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            said = _said(line)
            if said is not None and on_progress is not None:
                on_progress(*said)
        code = running.wait()
    if code:
        raise EngineError(
            f"distilling in {processes} processes ended with exit status {code}",
            remedy="What they printed last says more; try --processes 1.",
        )


def _said(line: str) -> tuple[str, float] | None:
    try:
        doing, share = json.loads(line)
    except (ValueError, TypeError):
        return None
    return str(doing), float(share)
