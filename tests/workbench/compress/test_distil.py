"""Distillation: the loss against its formula, students that learn, runs that go on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from serving.errors import InputError
from tests.workbench.compress.conftest import logits
from workbench.compress import distil, prune
from workbench.compress.checkpoint import load, size_bytes
from workbench.compress.distil import Distillation
from workbench.compress.texts import Seen
from workbench.compress.training import _layer_pairs, divergence, hidden_distance
from workbench.model import shipped_checkpoint


def random_logits(seed: int, n: int = 5, vocabulary: int = 40) -> torch.Tensor:
    return torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


def plain_kl(wanted: torch.Tensor, got: torch.Tensor) -> float:
    p, q = wanted.double().softmax(-1), got.double().softmax(-1)
    return float((p * (p / q).log()).sum(-1).mean())


def test_the_divergence_is_its_formula() -> None:
    wanted, got = random_logits(1), random_logits(2)
    assert float(divergence(wanted, got)) == pytest.approx(plain_kl(wanted, got), rel=1e-5)
    warm = float(divergence(wanted, got, temperature=2.0))
    assert warm == pytest.approx(4 * plain_kl(wanted / 2, got / 2), rel=1e-5)
    assert float(divergence(wanted, wanted)) == pytest.approx(0, abs=1e-6)
    assert float(divergence(wanted[:0], got[:0])) == 0


def test_fewer_tokens_see_less_of_the_divergence() -> None:
    """Merging events never raises a divergence; with all tokens it is the whole."""
    wanted, got = random_logits(3), random_logits(4)
    found = [float(divergence(wanted, got, top_k=k)) for k in (1, 4, 16, 39, 40)]
    assert found == sorted(found)
    assert found[0] > 0
    assert found[-1] == pytest.approx(plain_kl(wanted, got), rel=1e-5)


def test_hidden_states_of_any_width_compare() -> None:
    states = torch.randn(2, 6, 32)
    assert float(hidden_distance(states, 3 * states)) == pytest.approx(0, abs=1e-5)
    assert float(hidden_distance(states, -states)) == pytest.approx(2, abs=1e-5)
    turned = states @ torch.linalg.qr(torch.randn(32, 32))[0]
    wider = torch.cat([turned, torch.zeros(2, 6, 8)], dim=-1)
    # Of another width only the similarities count, and a rotation leaves those.
    assert float(hidden_distance(states, wider)) == pytest.approx(0, abs=1e-4)
    assert float(hidden_distance(states, torch.randn(2, 6, 8))) > 0.05


def test_layers_are_paired_with_what_follows_them(tmp_path: Path) -> None:
    start = prune(shipped_checkpoint(), tmp_path / "start", layers=1, calibration_sequences=8)
    asked = Distillation(teacher="t", student=str(start), out=tmp_path / "o", tokens=1)
    kept = [0, 1, 2, 3]
    kept.remove(next(i for i in range(4) if i not in _kept(start)))
    assert _layer_pairs(asked, 4, 3) == [(kept[1], 1), (kept[2], 2), (4, 3)]
    anew = asked.model_copy(update={"student": None})
    assert _layer_pairs(anew, 4, 2) == [(2, 1), (4, 2)]


def _kept(model: Path) -> list[int]:
    from workbench.compress.prune import layers_kept

    return layers_kept(model, of=4) or []


def held_out_kl(teacher: Path, student: Path) -> float:
    from workbench.model.batches import heldout_tokens

    (parent, tokenizer), (learner, _) = load(teacher), load(student)
    rows = heldout_tokens(tokenizer, max_tokens=2048)
    with torch.no_grad():
        wanted, got = (m(rows).logits.flatten(0, 1) for m in (parent, learner))
    return float(divergence(wanted, got))


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [{}, {"temperature": 2.0, "top_k": 64}, {"hidden_weight": 1.0}, {"label_weight": 0.5}]
)
def test_a_student_comes_closer_to_its_teacher(tmp_path: Path, how: dict[str, Any]) -> None:
    teacher = shipped_checkpoint()
    start = prune(teacher, tmp_path / "start", layers=1, mlp_width=512)
    student = distil(teacher, start, tmp_path / "student", tokens=8 * 2048, seed=1, **how)
    assert held_out_kl(teacher, student) < 0.9 * held_out_kl(teacher, start)
    assert size_bytes(student) == pytest.approx(size_bytes(start), rel=0.01)
    assert len(Seen.read(student).hashes) > 100
    assert not (tmp_path / "student.training").exists()


@pytest.mark.slow
def test_a_student_of_another_shape_begins_anew(tmp_path: Path) -> None:
    teacher = shipped_checkpoint()
    config = {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2}
    student = distil(
        teacher,
        None,
        tmp_path / "student",
        tokens=8 * 2048,
        config=config,
        hidden_weight=0.5,
        snapshots=2,
    )
    model, _ = load(student)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (2, 128)
    assert model.dtype == load(teacher)[0].dtype
    snapshots = sorted(int(p.name) for p in (tmp_path / "student.snapshots").iterdir())
    assert snapshots == [2 * 2048, 4 * 2048]
    far = held_out_kl(teacher, tmp_path / "student.snapshots" / str(2 * 2048))
    assert held_out_kl(teacher, student) < far


@pytest.mark.slow
def test_a_student_that_was_cut_off_is_the_same_student(tiny: Path, tmp_path: Path) -> None:
    def teach(out: Path, stop_at: int | None = None) -> None:
        def stop(doing: str, share: float) -> None:
            if stop_at is not None and f"step {stop_at}/" in doing:
                raise KeyboardInterrupt

        distil(
            tiny, tiny, out, tokens=6 * 512, batch_size=2, save_every=2, seed=3, on_progress=stop
        )

    teach(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        teach(tmp_path / "cut", stop_at=5)
    assert not (tmp_path / "cut").exists()
    assert (tmp_path / "cut.training" / "checkpoint-4").is_dir()
    teach(tmp_path / "cut")
    assert torch.equal(logits(tmp_path / "whole"), logits(tmp_path / "cut"))


@pytest.mark.slow
def test_two_processes_make_nearly_the_same_student(tiny: Path, tmp_path: Path) -> None:
    """Each takes half of every batch; their gradients are one."""
    told: list[float] = []
    start = prune(tiny, tmp_path / "start", layers=1, calibration_sequences=8)
    for processes, name in ((1, "one"), (2, "two")):
        distil(
            tiny,
            start,
            tmp_path / name,
            tokens=8 * 512,
            batch_size=2,
            seed=3,
            processes=processes,
            on_progress=lambda doing, share: told.append(share),
        )
    assert told.count(1.0) == 2
    one, two, before = (logits(tmp_path / name) for name in ("one", "two", "start"))
    assert float((one - two).abs().mean()) < 0.1 * float((one - before).abs().mean())


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"tokens": 0}, r"tokens\(=0\)"),
        ({"tokens": 1, "temperature": -1}, r"temperature\(=-1\)"),
        ({"tokens": 1, "label_weight": 2}, r"label_weight\(=2\)"),
        ({"tokens": 1, "warmth": 2}, r"warmth"),
        ({"tokens": 1, "batch_size": 3, "processes": 2}, r"batch_size\(=3\)"),
    ],
)
def test_what_cannot_be_is_refused(
    tiny: Path, tmp_path: Path, how: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        distil(tiny, tiny, tmp_path / "out", **how)
    with pytest.raises(InputError, match="to begin with"):
        distil(tiny, None, tmp_path / "out", tokens=1)


def test_snapshots_double(tmp_path: Path) -> None:
    asked = Distillation(teacher="t", student="s", out=tmp_path, tokens=100 * 2048, snapshots=3)
    assert asked.steps == 100
    assert asked.snapshot_steps() == {12: 12 * 2048, 25: 25 * 2048, 50: 50 * 2048}
    short = Distillation(teacher="t", student="s", out=tmp_path, tokens=2048, snapshots=9)
    assert short.snapshot_steps() == {}
    assert math.isclose(short.tokens, 2048)
