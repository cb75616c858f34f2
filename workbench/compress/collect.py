"""Text to train on from folders of one's own: files of source and prose, split, nothing twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

from serving.errors import InputError
from workbench.compress.texts import SEEN_SHARE, fingerprints
from workbench.model.corpus import HELDOUT_SHARE, is_heldout
from workbench.progress import OnProgress

TRAIN, HELDOUT = "train.jsonl", "heldout.jsonl"
ENDINGS = (".py", ".pyi", ".md", ".rst", ".txt")
LARGEST_BYTES = 200_000
"""Larger files are mostly tables and what programs wrote."""
_SMALLEST_BYTES = 200
_LEFT_OUT = {"__pycache__", "test", "tests", "testing", "_vendor", "vendor"}


def collect(
    folders: Sequence[Path], out: Path, *, on_progress: OnProgress | None = None
) -> dict[str, int]:
    """Write out/train.jsonl and out/heldout.jsonl from the files below folders.

    A document is a file. Which split it belongs to depends on a hash of its path below its folder; both
    files are in the order of such hashes, so that every beginning is a fair sample. A file of which
    half or more stands in others already is left out, so nothing that is held out was trained on.

    Args:    folders: taken in that order; hidden files, tests and vendored copies are left out.
    Returns: documents and characters of each file, and documents left out as copies.
    Raises:  InputError: a folder that is none, or nothing found.
    """
    found = sorted(_files(folders), key=lambda file: _order(file[0]))
    known: set[int] = set()
    told = {
        f"{split}_{what}": 0
        for split in ("train", "heldout")
        for what in ("documents", "characters")
    }
    told["copies"] = 0
    out.mkdir(parents=True, exist_ok=True)
    with (out / TRAIN).open("w") as train, (out / HELDOUT).open("w") as heldout:
        for number, (name, path) in enumerate(found):
            text = path.read_text(encoding="utf-8", errors="replace")
            grams = fingerprints(text)
            if sum(gram in known for gram in grams) >= SEEN_SHARE * max(len(grams), 1):
                told["copies"] += 1
                continue
            known.update(grams)
            split = "heldout" if is_heldout(name, HELDOUT_SHARE) else "train"
            print(json.dumps({"text": text}), file=heldout if split == "heldout" else train)
            told[f"{split}_documents"] += 1
            told[f"{split}_characters"] += len(text)
            if on_progress is not None and number % 100 == 0:
                on_progress(f"{number} of {len(found)} files", number / len(found))
    if not told["train_documents"] or not told["heldout_documents"]:
        raise InputError(
            f"{len(found)} files in {', '.join(map(str, folders))} are too few to hold some out",
            remedy=f"Name folders with more {', '.join(ENDINGS)} files.",
        )
    return told


def _files(folders: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"folder(={str(folder)!r}) is none", remedy="Check the path.")
        for path in folder.rglob("*"):
            below = path.relative_to(folder)
            left_out = _LEFT_OUT.intersection(below.parts) or any(p[0] == "." for p in below.parts)
            if left_out or path.suffix not in ENDINGS or not path.is_file():
                continue
            if _SMALLEST_BYTES <= path.stat().st_size <= LARGEST_BYTES:
                yield f"{folder.name}/{below.as_posix()}", path


def _order(name: str) -> str:
    return blake2b(name.encode(), digest_size=16).hexdigest()
