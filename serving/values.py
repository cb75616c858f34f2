"""The base of every value that flows between stages: frozen, validated, written as JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

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
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(key)}</th>"
            f"<td style='text-align:left'>{html.escape(_short(value))}</td></tr>"
            for key, value in self.model_dump(mode="json").items()
        )
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 160 else text[:157] + "..."


def doubted_html(doubts: Sequence[str]) -> str:
    """Lines that say why what is shown cannot be trusted; empty where it can."""
    return "".join(f"<br>cannot be trusted: {html.escape(doubt)}" for doubt in doubts)


class Estimate(Value):
    """A number with its 95 % confidence interval and how many observations it rests on."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"
