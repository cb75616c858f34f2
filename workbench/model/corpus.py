"""Text that every Python installation carries: the standard library and the language reference."""

from __future__ import annotations

import hashlib
import sysconfig
from functools import cache
from pathlib import Path
from typing import Literal

Split = Literal["train", "heldout"]

HELDOUT_SHARE = 0.05
_LEFT_OUT = {
    "__pycache__",
    "encodings",
    "idle_test",
    "lib-dynload",
    "site-packages",
    "test",
    "tests",
}
_TABLES = {"html/entities.py", "pydoc_data/topics.py"}


def documents(split: Split) -> list[str]:
    """Return the texts of one split, in an order that makes every beginning a fair sample.

    A document is one module's source, or one topic of the language reference. Which split it
    belongs to depends on a hash of its path alone, so the splits never overlap and stay put when
    other modules come and go; documents are sorted by the same hash.

    Args:    split: "train", or "heldout" for about 5 % of the documents.
    Returns: the documents, each a non-empty string.
    Raises:  ValueError: split is neither of the two.
    """
    check_split(split)
    return [
        text for name, text in _library() if is_heldout(name, HELDOUT_SHARE) == (split == "heldout")
    ]


def check_split(split: str) -> None:
    """Refuse anything that is not the name of a split.

    Raises: ValueError: split is neither "train" nor "heldout".
    """
    if split not in ("train", "heldout"):
        raise ValueError(f'split(={split!r}) must be "train" or "heldout"')


def is_heldout(name: str, share: float) -> bool:
    """Tell whether a name falls into the held-out share, by a hash that no process changes."""
    return _hash(name) < share * 2**64


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


@cache
def _library() -> list[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    found = _topics()
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        parts = name.split("/")
        generated = parts[0].startswith(("config-", "_sysconfigdata"))
        if generated or name in _TABLES or _LEFT_OUT.intersection(parts):
            continue
        found[name] = path.read_text(encoding="utf-8", errors="replace")
    return sorted(((n, t) for n, t in found.items() if t.strip()), key=lambda item: _hash(item[0]))


def _topics() -> dict[str, str]:
    """The language reference as `help()` shows it: prose, one document for each topic."""
    from pydoc_data.topics import topics

    return {f"topics/{name}": text for name, text in topics.items()}
