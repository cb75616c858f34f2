"""The base of every value that flows between stages: frozen, validated, written as JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from serving.errors import InputError


def one_line(error: ValidationError) -> str:
    """The first complaint of a ValidationError as `field(=value) what is wrong`."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or error.title
    message = first["msg"].removeprefix("Value error, ")
    value = first.get("input")
    shown = "" if isinstance(value, dict | list | BaseModel) else f"(={value!r})"
    return f"{field}{shown}: {message}"


class Value(BaseModel):
    """A frozen value; unknown fields raise."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _typos_are_named(cls, given: Any) -> Any:
        for name in given.keys() - _names(cls) if isinstance(given, dict) else ():
            near = get_close_matches(str(name), _names(cls), n=1, cutoff=0.75)
            if near:
                raise ValueError(f"{name} is not known; did you mean {near[0]}?")
        return given

    def write(self, path: Path) -> Path:
        """Write as JSON, whole or not at all (a crash never leaves half a file)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(self.model_dump_json(indent=2, by_alias=True) + "\n")
        return partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote.

        Raises:  InputError: no such file, not JSON, or not this value.
        """
        try:
            return cls.model_validate_json(path.read_text())
        except OSError as error:
            raise InputError(
                f"cannot read {path} ({error.strerror})", remedy="Check the path."
            ) from error
        except ValidationError as error:
            raise InputError(
                f"{path} is not a valid {cls.__name__}: {one_line(error)}",
                remedy="Write it again with the command that made it.",
            ) from error

    def _repr_html_(self) -> str:
        """A row per field that was chosen; what is left at its default is counted below."""
        whole = self.model_dump(mode="json")
        chosen = self.model_dump(mode="json", exclude_defaults=True) or whole
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(key)}</th>"
            f"<td style='text-align:left'>{html.escape(_short(value or whole[key]))}</td></tr>"
            for key, value in chosen.items()
        )
        left = len(type(self).model_fields) - len(chosen)
        note = f"<small>{left} more at their defaults</small>" if left else ""
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>{note}"


@cache
def _names(kind: type[BaseModel]) -> frozenset[str]:
    """By which the fields of a value may be given."""
    fields = kind.model_fields.items()
    return frozenset(name for own, field in fields for name in (own, field.alias) if name)


def _short(value: Any, longest: int = 160) -> str:
    """Nested fields as `name value`, numbers to six digits."""
    if isinstance(value, dict):
        text = ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
    elif isinstance(value, list):
        text = ", ".join(f"({_short(v)})" if isinstance(v, dict) else _short(v) for v in value)
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."


def shown_html(
    said: str,
    table: Any = None,
    *,
    doubts: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """How every result looks in a notebook: what it says, what speaks against it, and its table.

    Args:    table: a pandas DataFrame, which this package does not load; None for none.
    """
    lines = [f"<b>{html.escape(said, quote=False)}</b>"]
    lines += [f"cannot be trusted: {html.escape(doubt, quote=False)}" for doubt in doubts]
    lines += [html.escape(note, quote=False) for note in notes]
    shown = {"index": False, "border": 0, "na_rep": "–", "float_format": "{:.4g}".format}
    return "<br>".join(lines) + ("" if table is None else str(table.to_html(**shown)))


class Estimate(Value):
    """A number with its 95 % confidence interval and how many observations it rests on."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"
