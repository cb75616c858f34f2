"""Files that a workload reads: named by their digest, read again when they change."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from serving.errors import InputError


def digest(path: Path | str) -> str:
    """SHA-256 of a file's content.

    Raises:  InputError: no such file.
    """
    path = Path(path).expanduser()
    return _digest(str(path), stamp(path))


def checked_stamp(path: Path, sha256: str | None) -> tuple[int, int]:
    """Size and time of a file, of which the digest is what it must be; None asks for nothing.

    Raises:  InputError: no such file, or another one.
    """
    if sha256 is not None and digest(path) != sha256:
        raise InputError(
            f"{path} is another file than the one that was chosen (sha256 {sha256[:12]}...)",
            remedy="Restore it, or make the workload again.",
        )
    return stamp(path)


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of change.

    Raises:  InputError: no such file.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror})", remedy="Check the path."
        ) from error
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)
def _digest(path: str, stamp: tuple[int, int]) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
