"""Lines of logs as a stream: several files, packed or not, in memory that does not grow with them."""

from __future__ import annotations

import gzip
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO

from serving.errors import InputError

STDIN = "-"
LONGEST_BYTES = 2**20
"""Of a line; what is longer is no line of a log, and is not kept in memory."""
_PACKED = b"\x1f\x8b"
_TOLD_EVERY = 20_000
_READ_CHARACTERS, _KEPT_CHARACTERS = 4000, 300

_MASK = re.compile(
    r"""
      (?P<id> (?<![a-z0-9]) (?=[a-f-]*[0-9]) [0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}
              (?![a-z0-9]))
    | (?P<hex> (?<![a-z0-9]) 0x[0-9a-f]+ (?![a-z0-9]))
    | (?P<long> (?<![a-z0-9]) (?=[0-9]*[a-f]) (?=[a-f]*[0-9]) [0-9a-f]{8,} (?![a-z0-9]))
    | (?P<n> [0-9]+ (?:[.,:][0-9]+)* (?:e[+-]?[0-9]+ (?![a-z0-9]))?)
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_PLACEHOLDERS = {"id": "<id>", "hex": "<hex>", "long": "<id>", "n": "<n>"}


@lru_cache(maxsize=1024)
def mask(message: str) -> str:
    """A message without what differs from one occurrence to the next: numbers, ids, hex.

    No digit is left, so masking twice changes nothing. Long ones are cut, after masking: a cut before
    would fall now here, now there, or into an id.
    """
    if len(message) > _READ_CHARACTERS:
        message = message[:_READ_CHARACTERS].rsplit(None, 1)[0]
    masked = _MASK.sub(lambda found: _PLACEHOLDERS[str(found.lastgroup)], message)
    return masked[:_KEPT_CHARACTERS]


def lines(
    names: Sequence[str], on_progress: Callable[[int], None] = lambda read_bytes: None
) -> Iterator[bytes]:
    """Every line of files, one after the other; `-` is standard input, packed files are unpacked.

    A line above 1 MiB comes as its front alone.

    Args:    on_progress: told how many bytes (as they lie on the disk) were read.
    Raises:  InputError: a file that cannot be read or unpacked.
    """
    done = 0
    for name in names:
        with _opened(name) as (text, raw):
            try:
                for count, line in enumerate(_bounded(text)):
                    if count % _TOLD_EVERY == 0:
                        on_progress(done + _position(raw))
                    yield line
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(
                    f"cannot read {name} to its end ({error})", remedy="Fetch the file again."
                ) from error
            done += _position(raw)
            on_progress(done)


def size_bytes(names: Sequence[str]) -> int | None:
    """Of all files as they lie on the disk; None where standard input is among them.

    Raises:  InputError: no such file.
    """
    if STDIN in names:
        return None
    return sum(_stat(name) for name in names)


def _stat(name: str) -> int:
    try:
        return Path(name).stat().st_size
    except OSError as error:
        raise InputError(
            f"cannot read {name} ({error.strerror})", remedy="Check the path."
        ) from error


@contextmanager
def _opened(name: str) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The text of a file, and the file itself."""
    if name == STDIN:
        yield sys.stdin.buffer, sys.stdin.buffer
        return
    try:
        raw = Path(name).open("rb")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise InputError(
            f"cannot read {name} ({error.strerror})", remedy="Check the path."
        ) from error
    with raw:
        try:
            packed = raw.read(2) == _PACKED
            raw.seek(0)
        except OSError as error:  # a folder, a pipe
            raise InputError(
                f"cannot read {name} ({error.strerror})", remedy="Name files, or - for a pipe."
            ) from error
        yield (gzip.GzipFile(fileobj=raw), raw) if packed else (raw, raw)  # type: ignore[misc]


def _bounded(text: IO[bytes]) -> Iterator[bytes]:
    inside = False
    while part := text.readline(LONGEST_BYTES):
        if not inside:
            yield part
        inside = not part.endswith(b"\n")


def _position(raw: IO[bytes]) -> int:
    try:
        return raw.tell()
    except OSError:
        return 0
