from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from workbench.model import train as recipe
from workbench.model.shape import ModelShape, ModelShapeError
from workbench.model.train import ResumeError, train

pytestmark = pytest.mark.usefixtures("small_corpus")
STEPS = 20
TINY = ModelShape(hidden=128, layers=2, heads=2, kv_heads=1, mlp=128, vocab=384, max_tokens=256)


def _run(
    out: Path, *, seed: int = 0, stop_after: int | None = None, resume: bool = True
) -> list[float]:
    losses: list[float] = []

    def on_progress(step: int, total: int, loss: float, tokens_per_s: float) -> None:
        assert total == STEPS
        assert tokens_per_s > 0
        losses.append(loss)
        if step == stop_after:
            raise KeyboardInterrupt

    train(
        out,
        seed=seed,
        steps=STEPS,
        config=TINY,
        device="cpu",
        on_progress=on_progress,
        resume=resume,
        batch_size=2,
    )
    return losses


def test_training_learns_is_repeatable_and_survives_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "CHECKPOINT_EVERY", 4)
    whole = _run(tmp_path / "whole")
    assert len(whole) == STEPS
    assert sum(whole[-4:]) < 0.9 * sum(whole[:4])

    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "cut", stop_after=10)
    assert _run(tmp_path / "cut") == whole[8:]  # what came after the last checkpoint, again
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(one[name].equal(two[name]) for name in one)

    assert _run(tmp_path / "whole") == []  # finished: nothing left to do
    assert not (tmp_path / "whole" / "resume.pt").exists()
    with pytest.raises(ResumeError, match="resume=False"):
        _run(tmp_path / "whole", seed=1)
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "whole", seed=1, resume=False, stop_after=4)
    with pytest.raises(ResumeError, match="'seed': 1"):
        _run(tmp_path / "whole")  # the finished run is gone, the new one half done


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden": 200}, r"hidden\(=200\) must be a multiple of 128: take 256"),
        ({"mlp": 100}, r"mlp\(=100\)"),
        ({"vocab": 256}, r"vocab\(=256\) must hold all bytes"),
        ({"heads": 3}, r"heads\(=3\) must divide hidden\(=256\)"),
        ({"kv_heads": 3}, r"kv_heads\(=3\) must divide heads\(=4\)"),
        ({"layers": 0}, r"layers\(=0\) must be at least 1"),
    ],
)
def test_bad_shapes_say_what_to_do(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ModelShapeError, match=message):
        ModelShape(**sizes)


def test_bad_arguments_raise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"steps\(=0\)"):
        train(tmp_path, steps=0)
    with pytest.raises(ValueError, match="tpu"):
        train(tmp_path, device="tpu")
