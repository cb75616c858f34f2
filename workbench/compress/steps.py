"""The steps of which recipes are made, as data: quantize, prune, sparsify, distil."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError, field_validator

from serving.errors import InputError
from serving.plan import Variant
from serving.values import Value, one_line
from workbench.compress import machine
from workbench.progress import OnProgress


class _Step(Value):
    def make(
        self, parent: Variant, root: Variant, out: Path, on_progress: OnProgress | None
    ) -> None:
        """Write the checkpoint."""
        raise NotImplementedError

    def check(self) -> None:
        """Refuse before any work what this machine cannot serve."""

    @property
    def method(self) -> str:
        """What the card names it."""
        return str(getattr(self, "step"))  # noqa: B009  (each kind declares its own)

    @property
    def engine(self) -> dict[str, Any]:
        """Fields of EngineArgs that belong to the result."""
        return {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know."""
        return ()

    def label(self) -> str:
        """Short, for names."""
        return self.method


class Quantize(_Step):
    """Fewer bits, see quantize.SCHEMES."""

    step: Literal["quantize"] = "quantize"
    scheme: str = "int8-gptq"
    calibration_sequences: int = Field(64, ge=1)
    seq_len: int = Field(256, ge=2)
    text: Path | None = None
    task_share: float | None = Field(None, ge=0, le=1)
    seed: int = Field(0, ge=0)

    @field_validator("scheme")
    @classmethod
    def _known(cls, scheme: str) -> str:
        from workbench.compress.quantize import SCHEMES

        if scheme not in SCHEMES:
            raise ValueError(f"must be one of {', '.join(SCHEMES)}")
        return scheme

    def make(
        self, parent: Variant, root: Variant, out: Path, on_progress: OnProgress | None
    ) -> None:
        from workbench.compress.quantize import quantize

        quantize(parent.model, out, on_progress=on_progress, **self.model_dump(exclude={"step"}))

    def check(self) -> None:
        from workbench.compress.quantize import scheme_of

        machine.check(f"scheme(={self.scheme!r})", scheme_of(self.scheme).needs)

    @property
    def engine(self) -> dict[str, Any]:
        from workbench.compress.quantize import scheme_of

        return dict(scheme_of(self.scheme).engine)

    @property
    def method(self) -> str:
        return self.scheme

    def label(self) -> str:
        return self.scheme


class Prune(_Step):
    """Fewer layers, neurons, heads or channels."""

    step: Literal["prune"] = "prune"
    layers: int = Field(0, ge=0)
    contiguous: bool = False
    mlp_width: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    hidden: int | None = None
    calibration_sequences: int = Field(64, ge=1)
    text: Path | None = None
    task_share: float | None = Field(None, ge=0, le=1)
    seed: int = Field(0, ge=0)

    def make(
        self, parent: Variant, root: Variant, out: Path, on_progress: OnProgress | None
    ) -> None:
        from workbench.compress.prune import prune

        prune(parent.model, out, on_progress=on_progress, **self.model_dump(exclude={"step"}))

    def label(self) -> str:
        return "pruned"


class Sparsify(_Step):
    """Zeros where weights matter least; for quality only."""

    step: Literal["sparsify"] = "sparsify"
    sparsity: float = Field(0.5, gt=0, lt=1)
    pattern: Literal["unstructured", "2:4"] = "unstructured"
    algorithm: Literal["sparsegpt", "wanda"] = "sparsegpt"
    calibration_sequences: int = Field(64, ge=1)
    text: Path | None = None
    task_share: float | None = Field(None, ge=0, le=1)
    seed: int = Field(0, ge=0)

    def make(
        self, parent: Variant, root: Variant, out: Path, on_progress: OnProgress | None
    ) -> None:
        from workbench.compress.sparsify import sparsify

        sparsify(parent.model, out, on_progress=on_progress, **self.model_dump(exclude={"step"}))

    @property
    def notes(self) -> tuple[str, ...]:
        from workbench.compress.sparsify import NO_SPEED

        return (NO_SPEED,)

    def label(self) -> str:
        return "sparse24" if self.pattern == "2:4" else f"sparse{self.sparsity * 100:.0f}"


class Distil(_Step):
    """Learn from the model that the chain began with."""

    step: Literal["distil"] = "distil"
    tokens: int = Field(600_000, gt=0)
    config: dict[str, Any] = Field(default_factory=dict)
    """Begin anew with this instead of going on from the parent."""
    batch_size: int = Field(8, gt=0)
    seq_len: int = Field(256, ge=2)
    temperature: float = Field(1.0, gt=0)
    top_k: int | None = Field(None, gt=0)
    hidden_weight: float = Field(0.0, ge=0)
    label_weight: float = Field(0.0, ge=0, le=1)
    learning_rate: float = Field(1e-3, gt=0)
    snapshots: int = Field(0, ge=0)
    save_every: int | None = Field(None, gt=0)
    processes: int | None = Field(None, gt=0)
    text: Path | None = None
    task_share: float | None = Field(None, ge=0, le=1)
    seed: int = Field(0, ge=0)

    def make(
        self, parent: Variant, root: Variant, out: Path, on_progress: OnProgress | None
    ) -> None:
        from workbench.compress.distil import distil

        student = None if self.config else parent.model
        how = self.model_dump(exclude={"step"}, exclude_none=True)
        distil(root.model, student, out, on_progress=on_progress, **how)

    def label(self) -> str:
        return "distilled"


_COMMA = re.compile(r",(?![^{\[]*[}\]])")
"""Not one within brackets."""

Step = Annotated[Quantize | Prune | Sparsify | Distil, Field(discriminator="step")]
_STEP: TypeAdapter[Step] = TypeAdapter(Step)


def parse_step(text: str) -> Step:
    """A step from `prune:layers=1,mlp_width=512`; a scheme's name alone quantizes.

    Raises:  InputError: says what is wrong with it.
    """
    from workbench.compress.quantize import SCHEMES

    kind, _, rest = text.partition(":")
    chosen: dict[str, Any] = {"step": kind}
    if kind in SCHEMES:
        chosen = {"step": "quantize", "scheme": kind}
    for part in filter(None, _COMMA.split(rest)):
        name, equals, value = part.partition("=")
        try:
            # Everything else is for the field to read: to YAML 2:4 is a time of day.
            chosen[name] = yaml.safe_load(value) if value[:1] in ("{", "[") else value
        except yaml.YAMLError:
            equals = ""
        if not equals:
            raise InputError(
                f"step(={text!r}) has {part!r}, which is no NAME=VALUE",
                remedy="Write for example prune:layers=1,mlp_width=512.",
            )
    return step_of(chosen, f"step(={text!r}): ")


def step_of(chosen: Mapping[str, Any], where: str = "") -> Step:
    """A step from its fields.

    Raises:  InputError: says what is wrong with it.
    """
    try:
        return _STEP.validate_python(dict(chosen))
    except ValidationError as error:
        raise InputError(
            f"{where}{told(error)}",
            remedy="Steps are quantize, prune, sparsify and distil; each command's --help has the rest.",
        ) from error


def told(error: ValidationError) -> str:
    """A complaint without the name of the union's member in front."""
    said = one_line(error)
    kind, dot, rest = said.partition(".")
    return rest if dot and kind in ("quantize", "prune", "sparsify", "distil") else said
