"""Files of the bundle as they stand in templates/, with what depends on the plan put in place.

A placeholder is `@{name}`: `$` and `{{` belong to nginx, Compose, Filebeat and Argo. What is put in place
of a dictionary or a list is JSON, which YAML holds.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).with_name("templates")


class _Template(string.Template):
    delimiter = "@"
    pattern = r"""
    @(?:(?P<escaped>@)|(?P<named>(?!))|\{(?P<braced>[a-z][a-z0-9_]*)\}|(?P<invalid>(?=\{)))
    """  # type: ignore[assignment]  # the metaclass compiles it


def fill(path: str, values: Mapping[str, Any]) -> str:
    """The template at `path` with its placeholders filled.

    Raises:  KeyError: a placeholder without a value.
    """
    text = (_FOLDER / path).read_text()
    return _Template(text).substitute({name: _said(value) for name, value in values.items()})


def paths(folder: str) -> list[str]:
    """Templates of a folder, by their path in the bundle."""
    return sorted(path.relative_to(_FOLDER).as_posix() for path in (_FOLDER / folder).iterdir())


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
