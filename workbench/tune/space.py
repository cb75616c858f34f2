"""What is searched, declared as data: choices and ranges, each of which may be fixed or freed.

In a file, and in Python alike, a single value fixes a parameter and a list frees it:

    metrics: [vllm_num_requests_waiting, [DCGM_FI_DEV_GPU_UTIL, vllm_ttft_mean_seconds]]
    targets: {vllm_num_requests_waiting: [1, 10], DCGM_FI_DEV_GPU_UTIL: 70}
    sources: External
    min_replicas: 1
    max_replicas: [4, 16]
    scale_down_window_s: [0, 300, 600]

A list within `metrics` names metrics that are followed together. `min_replicas`, `max_replicas` and
the targets are ranges, low to high; everything else are choices.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from serving.errors import InputError
from serving.hpa import (
    GPU_UTILISATION,
    KV_CACHE_USAGE,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    TTFT_MEAN,
)
from serving.plan import EngineArgs
from serving.values import Value, one_line
from workbench.tune.targets import TARGETS, Source, TargetRange, merged

if TYPE_CHECKING:
    from simulations.traffic import Workload

_MARGIN = 0.1
_RANGES = ("min_replicas", "max_replicas")


class SearchSpace(Value):
    """The choices of the search. None is taken from the workload and the engine.

    Where several metrics are named together, the HPA follows the one that asks for most replicas.
    Of the policies of a direction the one that allows most counts; 0 stands for none.
    """

    variants: tuple[str, ...] | None = None
    """None: all candidates."""
    max_num_seqs: tuple[int, ...] | None = None
    """Only those within the fitted range are used. None: the engine's own, a half and a quarter."""
    max_num_batched_tokens: tuple[int, ...] | None = None
    """None: the engine's own."""
    enable_prefix_caching: tuple[bool, ...] | None = None
    """None: the engine's own, and where prompts begin alike on and off."""
    result_cache_size: tuple[int, ...] = (0,)
    """Answers that the gateway keeps."""

    metrics: tuple[tuple[str, ...], ...] = (
        (REQUESTS_RUNNING,),
        (REQUESTS_WAITING,),
        (KV_CACHE_USAGE,),
        (GPU_UTILISATION,),
        (TTFT_MEAN,),
        (GPU_UTILISATION, TTFT_MEAN),
    )
    targets: dict[str, TargetRange] = Field(default_factory=lambda: dict(TARGETS))
    """What is given here changes the usual ranges."""
    sources: tuple[Source, ...] = ("Pods",)
    """As which type the HPA reads its metrics."""

    min_replicas: tuple[int, int] | None = None
    """None: 1 to the peak's need and a margin."""
    max_replicas: tuple[int, int] | None = None
    """None: the peak's need to twice that with its margin."""
    scale_to_zero: tuple[bool, ...] = (False,)
    """As KEDA does it; only with an External or Object metric, and instead of min_replicas."""
    warm_spares: tuple[int, ...] = (0, 1, 2)

    scale_up_window_s: tuple[int, ...] = (0, 15, 30, 60)
    scale_up_pods: tuple[int, ...] = (1, 2, 4, 8)
    """Most pods added in a period."""
    scale_up_percent: tuple[int, ...] = (0, 100)
    """Largest share of the pods added in a period."""
    scale_up_period_s: tuple[int, ...] = (15,)
    scale_up_tolerance: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2)
    scale_down_window_s: tuple[int, ...] = (0, 60, 120, 300, 600)
    scale_down_pods: tuple[int, ...] = (0,)
    """Most pods removed in a period."""
    scale_down_percent: tuple[int, ...] = (10, 25, 50, 100)
    """Largest share of the pods removed in a period."""
    scale_down_period_s: tuple[int, ...] = (60,)
    scale_down_tolerance: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2)

    @classmethod
    def read_file(cls, path: Path, base: SearchSpace | None = None) -> SearchSpace:
        """A space from its YAML or JSON file.

        Args:    base: what a parameter that the file leaves out is; None is the default space.
        Raises:  InputError: no such file, or not a space.
        """
        remedy = "Name fields of SearchSpace, each with one value or a list."
        try:
            given = yaml.safe_load(path.read_text()) or {}
            if not isinstance(given, dict):
                raise InputError(f"{path} is no mapping of parameters", remedy=remedy)
            return cls.model_validate((base or cls()).model_dump() | given)
        except OSError as error:
            raise InputError(
                f"cannot read {path} ({error.strerror})", remedy="Check the path."
            ) from error
        except (ValidationError, yaml.YAMLError) as error:
            said = one_line(error) if isinstance(error, ValidationError) else str(error)
            raise InputError(f"{path} is not a search space: {said}", remedy=remedy) from error

    @model_validator(mode="before")
    @classmethod
    def _one_value_fixes(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        found = dict(given)
        for name, value in given.items():
            if not isinstance(value, str | int | float):
                continue
            found[name] = (value, value) if name in _RANGES else (value,)
        return found

    @field_validator("metrics", mode="before")
    @classmethod
    def _one_name_is_a_set_of_one(cls, given: Any) -> Any:
        if not isinstance(given, list | tuple):
            return given
        return tuple((name,) if isinstance(name, str) else name for name in given)

    @field_validator("targets", mode="before")
    @classmethod
    def _over_the_usual(cls, given: Any) -> Any:
        return merged(given) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _complete(self) -> SearchSpace:
        for names in self.metrics:
            unknown = [name for name in names if name not in self.targets]
            if unknown or not names:
                raise ValueError(f"metrics(={names}) must have a range in targets each")
        for name, choices in self:
            if isinstance(choices, tuple) and not choices:
                raise ValueError(f"{name}(=()) must not be empty")
        for name in _RANGES:
            bounds = getattr(self, name)
            if bounds is not None and not 1 <= bounds[0] <= bounds[1]:
                raise ValueError(f"{name}(={bounds}) must be two numbers, 1 <= low <= high")
        return self

    @model_validator(mode="after")
    def _every_point_is_a_plan(self) -> SearchSpace:
        """What no plan could hold is refused here, and not trial by trial."""
        for name, choices in self:
            if not name.startswith(("scale_", "warm_", "result_", "max_num_")):
                continue
            least = 1 if name.endswith("_period_s") or name.startswith("max_num_") else 0
            if choices is not None and min(choices) < least:
                raise ValueError(f"{name}(={choices}) must be >= {least}")
        for way in ("up", "down"):
            pods, percent = (getattr(self, f"scale_{way}_{kind}") for kind in ("pods", "percent"))
            if 0 in pods and 0 in percent:
                raise ValueError(
                    f"scale_{way}_pods(={pods}) and scale_{way}_percent(={percent}) must not both"
                    " be 0: nothing would scale"
                )
        seqs, tokens = self.max_num_seqs, self.max_num_batched_tokens
        if seqs is not None and tokens is not None and min(tokens) < max(seqs):
            raise ValueError(f"max_num_batched_tokens(={tokens}) must be >= max_num_seqs(={seqs})")
        always = False not in self.scale_to_zero
        pods_only = set(self.sources) == {"Pods"}
        if True in self.scale_to_zero and (pods_only or (always and "Pods" in self.sources)):
            raise ValueError(
                f"scale_to_zero(={self.scale_to_zero}) needs sources(={self.sources}) to be"
                " External or Object"
            )
        return self

    def zero_choices(self, source: Source) -> tuple[bool, ...]:
        """Whether a fleet that is scaled by metrics of this type may go to zero."""
        return (False,) if source == "Pods" else self.scale_to_zero

    def sized(self, peak_replicas: int, engine: EngineArgs, workload: Workload) -> SearchSpace:
        """The same with nothing left open but the variants and their max_num_seqs.

        Perfectly spread requests would need `peak_replicas`. A fleet that is always there needs
        some more, and one that scales may overshoot: both are in the ranges.
        """
        always = peak_replicas + 2 * max(1, round(_MARGIN * peak_replicas))
        own = engine.enable_prefix_caching
        alike = workload.shared_prefix is not None or workload.sessions is not None
        return self.model_copy(
            update={
                "min_replicas": self.min_replicas or (1, always),
                "max_replicas": self.max_replicas or (peak_replicas, 2 * always),
                "max_num_batched_tokens": self.tokens_choices(engine),
                "enable_prefix_caching": self.enable_prefix_caching
                or ((own, not own) if alike else (own,)),
            }
        )

    def tokens_choices(self, engine: EngineArgs) -> tuple[int, ...]:
        """Values of max_num_batched_tokens."""
        return self.max_num_batched_tokens or (engine.max_num_batched_tokens,)

    def seqs_choices(self, engine: EngineArgs, most: int) -> tuple[int, ...]:
        """Values of max_num_seqs that may be simulated, the largest first."""
        largest = min(engine.max_num_seqs, most)
        choices = self.max_num_seqs or (largest, largest // 2, largest // 4)
        fit = {n for n in choices if 1 <= n <= min(most, *self.tokens_choices(engine))}
        return tuple(sorted(fit, reverse=True))
