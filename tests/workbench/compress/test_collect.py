"""Text from folders: split by name, nothing twice, nothing held out that was trained on."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from serving.errors import InputError
from workbench.compress.collect import HELDOUT, TRAIN, collect
from workbench.compress.texts import seen_file
from workbench.model.jsonl import documents_of


def prose(seed: int, words: int = 300) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefghij", k=6)) for _ in range(words))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "package"
    for number in range(120):
        path = root / f"part{number % 3}" / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(prose(number))
    (root / "copy.py").write_text(prose(0) + " and a little more")
    for left_out in ("tests/test_it.py", ".hidden/it.py", "table.csv", "short.py"):
        path = root / left_out
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("short" if left_out == "short.py" else prose(999))
    return root


def test_files_become_two_splits_without_copies(folder: Path, tmp_path: Path) -> None:
    told = collect([folder], tmp_path / "out")
    train, heldout = (documents_of(tmp_path / "out" / name) for name in (TRAIN, HELDOUT))
    assert told["train_documents"] == len(train)
    assert told["heldout_documents"] == len(heldout) > 0
    assert len(train) + len(heldout) == 120
    assert told["copies"] == 1
    assert prose(999) not in train + heldout
    seen = seen_file(tmp_path / "out" / TRAIN)
    assert all(seen.knows(text) for text in train)
    assert not any(seen.knows(text) for text in heldout)


def test_the_same_files_give_the_same_splits(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        collect([folder], tmp_path / name)
    for split in (TRAIN, HELDOUT):
        assert (tmp_path / "one" / split).read_text() == (tmp_path / "two" / split).read_text()


def test_folders_without_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        collect([tmp_path / "nowhere"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="too few"):
        collect([tmp_path / "empty"], tmp_path / "out")


def test_every_line_is_an_entry_whatever_the_text(folder: Path, tmp_path: Path) -> None:
    (folder / "strange.py").write_text(prose(5000) + "\u2028\x0c\n\x85 end")
    told = collect([folder], tmp_path / "out")
    lines = [
        json.loads(line)
        for name in (TRAIN, HELDOUT)
        for line in (tmp_path / "out" / name).read_text().splitlines()
    ]
    assert len(lines) == told["train_documents"] + told["heldout_documents"] == 121
