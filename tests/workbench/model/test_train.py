from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from serving.errors import InputError
from workbench.model import shipped_checkpoint
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


def test_text_of_ones_own_is_part_of_the_recipe(tmp_path: Path) -> None:
    texts = {name: tmp_path / f"{name}.jsonl" for name in ("train", "heldout")}
    for name, path in texts.items():
        lines = [
            {"text": f"The {name} text has line {i} and {i * i} in it. " * 20} for i in range(60)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def go(out: Path, **changes: object) -> Path:
        asked = {"text": texts["train"], "heldout": texts["heldout"], "seq_len": 32} | changes
        return train(out, steps=2, config=TINY, device="cpu", batch_size=2, baseline=False, **asked)

    card = json.loads((go(tmp_path / "own") / "card.json").read_text())
    assert card["recipe"]["seq_len"] == 32
    assert card["tokens_seen"] == 2 * 2 * 32
    assert "ngram" not in card["heldout"]
    assert go(tmp_path / "own") == tmp_path / "own"  # finished, the text being the same
    texts["train"].write_text(texts["train"].read_text() + json.dumps({"text": "More."}) + "\n")
    with pytest.raises(ResumeError, match="another folder"):
        go(tmp_path / "own")
    with pytest.raises(ValueError, match="together"):
        go(tmp_path / "half", heldout=None)
    with pytest.raises(ValueError, match=r"seq_len\(=512\) must be at most"):
        go(tmp_path / "long", seq_len=512)
    with pytest.raises(InputError, match="nowhere"):
        go(tmp_path / "gone", text=tmp_path / "nowhere.jsonl")


def test_what_older_runs_could_not_choose_is_not_in_their_recipe() -> None:
    shipped = json.loads((shipped_checkpoint() / "card.json").read_text())["recipe"]
    assert recipe.Recipe(0, 1600, 16, 0.5, ModelShape()).told() == shipped
