"""The training loop of a distillation, in this process or in several (`python -m ... request.json`)."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from workbench.compress.checkpoint import load, written
from workbench.compress.distil import Distillation
from workbench.compress.prune import layers_kept
from workbench.compress.texts import seen_file, seen_rows
from workbench.model.batches import IGNORED, Rows
from workbench.model.train import GPU_WORKERS, bf16_pays
from workbench.progress import OnProgress

_TINY = 1e-9


def train(asked: Distillation, on_progress: OnProgress | None = None) -> None:
    """Train, and write the student where this is the first process."""
    teacher, tokenizer = load(asked.teacher)
    dtype = teacher.dtype
    arguments = _arguments(asked)
    if not arguments.bf16:
        teacher.float()  # many times faster where there are no kernels for 16 bits
    student = _student(asked)
    rows = Rows(
        tokenizer,
        seed=asked.seed,
        seq_len=asked.seq_len,
        text=asked.text,
        task_share=asked.task_share,
    )
    data = _Data(rows, asked.steps * asked.batch_size)
    trainer = _DistilTrainer(
        asked,
        teacher,
        _layer_pairs(asked, teacher.config.num_hidden_layers, student.config.num_hidden_layers),
        model=student,
        args=arguments,
        train_dataset=data,
        data_collator=_together,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Watch(asked, tokenizer, dtype, trainer, on_progress))
    trainer.train(resume_from_checkpoint=_last_checkpoint(asked.training_folder))
    if trainer.is_world_process_zero():
        with written(asked.out) as folder:
            _write(student, tokenizer, dtype, folder)
            fitted = seen_file(asked.text) if asked.text else seen_rows(tokenizer, data.inputs())
            fitted.write(folder)


def divergence(
    wanted: torch.Tensor, got: torch.Tensor, temperature: float = 1.0, top_k: int | None = None
) -> torch.Tensor:
    """T^2 KL(wanted || got), the mean over rows.

    Args:    wanted, got: logits (n, vocabulary).
             top_k: over so many of the likeliest tokens of `wanted`, and the rest as one.
    """
    p, q = (F.log_softmax(logits.float() / temperature, dim=-1) for logits in (wanted, got))
    if top_k is not None and top_k < p.shape[-1]:
        p, likeliest = p.topk(top_k, dim=-1)
        q = q.gather(-1, likeliest)
        p, q = _with_rest(p), _with_rest(q)
    # A row without an answer in it has nothing to learn from: 0, not NaN.
    total = F.kl_div(q, p, reduction="sum", log_target=True)
    return temperature**2 * total / max(len(wanted), 1)


def hidden_distance(wanted: torch.Tensor, got: torch.Tensor) -> torch.Tensor:
    """How far apart two hidden states are, 0 to 2.

    1 - cosine of each position's; where widths differ, of how like each position is to each other.

    Args:    wanted, got: (batch, positions, width).
    """
    wanted, got = wanted.float(), got.float()
    if wanted.shape[-1] != got.shape[-1]:
        wanted, got = (
            (unit := F.normalize(states, dim=-1)) @ unit.transpose(1, 2) for states in (wanted, got)
        )
    return (1 - F.cosine_similarity(wanted, got, dim=-1)).mean()


def _with_rest(logp: torch.Tensor) -> torch.Tensor:
    rest = (1 - logp.exp().sum(dim=-1, keepdim=True)).clamp(min=_TINY).log()
    return torch.cat([logp, rest], dim=-1)


class _Data(Dataset[dict[str, torch.Tensor]]):  # type: ignore[misc]
    """The first n rows."""

    def __init__(self, rows: Rows, n: int) -> None:
        self._rows, self._n = rows, n

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        inputs, labels = self._rows[i]
        return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}

    def inputs(self) -> list[list[int]]:
        return [self._rows[i][0].tolist() for i in range(self._n)]


def _together(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class _DistilTrainer(Trainer):  # type: ignore[misc]
    def __init__(
        self, asked: Distillation, teacher: Any, pairs: list[tuple[int, int]], **others: Any
    ) -> None:
        super().__init__(**others)
        self._asked, self._pairs = asked, pairs
        self.kl = torch.tensor(torch.nan)
        self._teacher = teacher.to(self.args.device).eval()

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        # Rows are in their order already, whichever process they come to.
        return SequentialSampler(self.train_dataset)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        asked, hidden = self._asked, self._asked.hidden_weight > 0
        tokens, labels = inputs["input_ids"], inputs["labels"][:, 1:]
        learnt = labels != IGNORED
        got = model(input_ids=tokens, output_hidden_states=hidden, use_cache=False)
        logits = got.logits[:, :-1][learnt]
        # Processes average their gradients; one with fewer tokens to learn has to count for less.
        own = learnt.sum().float()
        share = own / self.accelerator.reduce(own, reduction="mean").clamp(min=1)
        loss = torch.zeros((), device=logits.device)
        if asked.label_weight < 1 or hidden:
            with torch.no_grad():
                wanted = self._teacher(tokens, output_hidden_states=hidden, use_cache=False)
            wanted_logits = wanted.logits[:, :-1][learnt]
            kl = share * divergence(wanted_logits, logits, asked.temperature, asked.top_k)
            loss = (1 - asked.label_weight) * kl
            self.kl = kl.detach()
        if asked.label_weight:
            missed = F.cross_entropy(logits.float(), labels[learnt], reduction="sum")
            loss = loss + asked.label_weight * share * missed / max(len(logits), 1)
        for theirs, its in self._pairs if hidden else ():
            far = hidden_distance(wanted.hidden_states[theirs], got.hidden_states[its])
            loss = loss + asked.hidden_weight / len(self._pairs) * far
        return loss


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Tells how far the run is, and keeps students on the way."""

    def __init__(
        self,
        asked: Distillation,
        tokenizer: Any,
        dtype: Any,
        trainer: _DistilTrainer,
        on_progress: OnProgress | None,
    ) -> None:
        self._asked, self._tokenizer, self._dtype = asked, tokenizer, dtype
        self._trainer = trainer
        self._snapshots = asked.snapshot_steps()
        self._on_progress = on_progress

    def on_step_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        if not state.is_world_process_zero:
            return
        step, steps = state.global_step, self._asked.steps
        if step in self._snapshots:
            with written(self._asked.snapshot_folder / str(self._snapshots[step])) as folder:
                student = getattr(context["model"], "module", context["model"])
                _write(student, self._tokenizer, self._dtype, folder)
        if self._on_progress is not None:
            kl = float(self._trainer.kl)
            self._on_progress(f"distilling, step {step}/{steps}, KL {kl:.3f}", step / steps)


def _student(asked: Distillation) -> Any:
    if asked.student is not None:
        return load(asked.student, dtype=torch.float32)[0].train()
    config = AutoConfig.from_pretrained(asked.teacher, **asked.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(asked.seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()


def _write(student: Any, tokenizer: Any, dtype: Any, folder: Path) -> None:
    """In the teacher's type; the student itself goes on learning in 32 bits."""
    cast: dict[int, Any] = {}  # by address, since weights that are tied have to stay so
    state = {
        name: cast.setdefault(value.data_ptr(), value.to(dtype))
        for name, value in student.state_dict().items()
    }
    student.save_pretrained(folder, state_dict=state)
    # It notes the type of the model, not that of the weights it was given.
    config = deepcopy(student.config)
    config.dtype = dtype
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _layer_pairs(asked: Distillation, theirs: int, own: int) -> list[tuple[int, int]]:
    """Which hidden state of the teacher each of the student's should be like.

    Behind a layer of a pruned student stands the layer that follows in it, so it should be what the
    teacher feeds to that one; without such knowledge layers are paired evenly.
    """
    kept = None if asked.student is None else layers_kept(asked.student, of=theirs)
    if kept is not None and len(kept) == own:
        return [*((kept[j + 1], j + 1) for j in range(own - 1)), (theirs, own)]
    return [(round((j + 1) * theirs / own), j + 1) for j in range(own)]


def _arguments(asked: Distillation) -> Any:
    gpu = torch.cuda.is_available()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return TrainingArguments(
        output_dir=str(asked.training_folder),
        max_steps=asked.steps,
        per_device_train_batch_size=asked.batch_size // processes,
        learning_rate=asked.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=max(1, asked.steps // 20),
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=bf16_pays(torch.device("cuda" if gpu else "cpu")),
        use_cpu=not gpu,
        dataloader_num_workers=GPU_WORKERS if gpu else 0,
        ddp_find_unused_parameters=False,
        save_steps=asked.save_every,
        save_total_limit=2,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=asked.seed,
    )


def _last_checkpoint(folder: Path) -> str | None:
    """The last whole checkpoint of this run; the Trainer writes its state last."""
    found = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    for path in folder.glob("checkpoint-*"):
        if path not in found:
            shutil.rmtree(path)
    return str(max(found, key=lambda path: int(path.name.split("-")[1]))) if found else None


def main() -> None:
    """One of several processes."""

    def tell(doing: str, share: float) -> None:
        print(json.dumps([doing, share]), flush=True)

    train(Distillation.read(Path(sys.argv[1])), tell)


if __name__ == "__main__":
    main()
