"""What a user may choose about a run of the pipeline, with defaults that fit a small machine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from serving.errors import ModelError
from serving.plan import EngineArgs, Slo
from serving.values import Value
from simulations.profiles import PROFILES
from simulations.traffic import Day, LogNormal, Poisson, Workload
from workbench.compress.quality import Ask
from workbench.compress.recipe import Recipe
from workbench.tune import SearchSpace

# Plain Kubernetes has no pool of standby pods, and takes a tolerance of its own from 1.33 on only:
# what is simulated has to be what is applied.
SHIPPABLE = SearchSpace(warm_spares=(0,), scale_up_tolerance=(0.1,), scale_down_tolerance=(0.1,))


def engine_for_this_machine() -> EngineArgs:
    """Small batches and a small KV cache; on a CPU also no compiling, which takes minutes there."""
    if Path("/dev/nvidia0").exists():
        return EngineArgs(max_model_len=1024, max_num_seqs=32, max_num_batched_tokens=1024)
    return EngineArgs(
        max_model_len=1024,
        max_num_seqs=32,
        max_num_batched_tokens=1024,
        gpu_memory_utilization=0.3,
        kv_cache_memory_bytes=128 * 2**20,
        enforce_eager=True,
    )


class Settings(Value):
    """One run of the pipeline.

    Lengths are those of the published profile divided by `length_divisor`, each cut at half of the
    engine's context.
    """

    model: str | None = None
    """A local folder or a hub id; None takes the shipped demo model."""
    seed: int = Field(0, ge=0)
    engine: EngineArgs = Field(default_factory=lambda: engine_for_this_machine())
    slo: Slo = Slo()
    profile: str = "servegen-deepseek-r1"
    length_divisor: float = Field(4, ge=1)

    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    sweep_tokens: int = Field(64, ge=2)
    """Prompt and output length of the offline sweep."""
    fit_shapes: tuple[tuple[int, int], ...] = ((384, 16), (16, 128))
    """Prompt and output lengths that the sweep measures besides, once, since one length cannot tell what
    a sequence costs from what its cache costs. Those beyond the engine's context are left out."""
    repeats: int = Field(2, ge=1)
    rates_rps: tuple[float, ...] | None = None
    """None: shares of the capacity seen in the offline sweep."""
    load_shares: tuple[float, ...] = (0.2, 0.5, 0.8)
    load_duration_s: float = Field(12.0, ge=2)
    served_variants: int = Field(2, ge=1)
    """How many variants are also measured behind a real server: the parent and the fastest."""

    peak_rps: float | None = Field(None, gt=0)
    """Rate in the busiest hour of the day; None: `peak_replicas` times what one replica sustains."""
    peak_replicas: float = Field(4, gt=0)
    gpu_usd_per_hour: float = Field(2.5, gt=0)
    day_duration_s: float = Field(14_400, ge=600)
    """The day's shape is played in this time, so its ramps are steeper than the real day's by the same
    factor, and what keeps the SLO here keeps it there. 86,400 is the real day, at six times the work."""
    trials: int = Field(32, ge=4)
    sampler: Literal["tpe", "gp", "random"] = "tpe"
    objective: Literal["cost", "front"] = "cost"
    trials_at_once: int = Field(4, ge=1)
    """Trials asked for together; more workers have nothing to do."""
    ray: str | None = Field(None, exclude=True)
    """Address of a Ray cluster that runs the trials, in place of this machine's cores; not remembered,
    as the result is the same."""
    space: SearchSpace = SHIPPABLE
    """What the search chooses from."""
    tune_seeds: tuple[int, ...] = (0, 1)
    choice_seeds: tuple[int, ...] = (50, 51, 52)
    """Traffic of the final choice: the winner must keep the SLO on it, too."""
    unseen_seeds: tuple[int, ...] = (100, 101, 102)
    """Traffic that neither the search nor the choice has seen: the winner is reported on it."""
    neighbour_seeds: int = Field(1, ge=0)
    """On so many of the unseen seeds are the winner's neighbours tried, each a step in one parameter."""
    random_baseline: bool = False
    """Search at random too, as many trials: twice the work."""
    recipes: tuple[Recipe, ...] | None = None
    """Which variants are made; None makes INT8 and a pruned-and-distilled student."""
    distil_tokens: int = Field(600_000, ge=1_000)
    """Of the student, where no recipes are given."""
    ask: Ask = Ask()
    """What variants are judged by."""
    force: bool = False
    """Fit and tune on measurements that cannot be trusted; every result then says so."""

    @model_validator(mode="after")
    def _positive(self) -> Settings:
        known = sorted(name for name, profile in PROFILES.items() if profile.lengths is not None)
        if self.profile not in known:  # of others only the rates were published
            raise ValueError(f"profile(={self.profile!r}) must be one of {known}")
        for name, values in (("batches", self.batches), ("rates_rps", self.rates_rps or (1,))):
            wrong = [value for value in values if value <= 0]
            if wrong or not values:
                raise ValueError(f"{name}(={wrong or values}) must be > 0")
        if max(self.batches) > self.engine.max_num_seqs:
            raise ValueError(
                f"batches(={max(self.batches)}) must be <= max_num_seqs"
                f"(={self.engine.max_num_seqs})"
            )
        return self

    def model_path(self) -> str:
        """The model, checked to exist where it is a path.

        Raises:  ModelError: a path without a model.
        """
        from workbench.model import shipped_checkpoint

        if self.model is None:
            return str(shipped_checkpoint())
        looks_like_path = self.model.startswith((".", "/", "~")) or self.model.count("/") > 1
        path = Path(self.model).expanduser()
        if path.exists() or looks_like_path:
            if not (path / "config.json").is_file():
                raise ModelError(
                    f"no model at {self.model!r} (there is no config.json)",
                    remedy="Give a folder made by save_pretrained, or a hub id.",
                )
            return str(path.resolve())
        return self.model

    def model_state(self) -> str:
        """The model, and for a folder also its files: results belong to what lay there then."""
        path = Path(self.model_path())
        if not path.is_dir():
            return str(path)
        files = sorted(f for f in path.iterdir() if f.is_file())
        return f"{path} {[(f.name, _fingerprint(f)) for f in files]}"

    def lengths(self) -> dict[str, LogNormal]:
        """Prompt and output lengths of the profile, scaled to the engine's context."""
        published = PROFILES[self.profile].lengths
        assert published is not None
        room = self.engine.max_model_len
        return {
            "prompt_tokens": LogNormal(
                median_tokens=published.prompt_median_tokens / self.length_divisor,
                mean_tokens=published.prompt_mean_tokens / self.length_divisor,
                min_tokens=4,
                max_tokens=room // 2,
            ),
            "output_tokens": LogNormal(
                median_tokens=published.output_median_tokens / self.length_divisor,
                mean_tokens=published.output_mean_tokens / self.length_divisor,
                min_tokens=2,
                max_tokens=room // 2 - 8,
            ),
        }

    def load(self, rate_rps: float) -> Workload:
        """Poisson load for a real server."""
        lengths: dict[str, Any] = self.lengths()
        return Workload(
            arrivals=Poisson(rate_rps=rate_rps),
            duration_s=self.load_duration_s,
            warmup_s=min(2.0, self.load_duration_s / 5),
            seed=self.seed,
            **lengths,
        )

    def day(self, peak_rps: float) -> Workload:
        """The profile's day, its busiest hour at `peak_rps`."""
        lengths: dict[str, Any] = self.lengths()
        return Workload(
            arrivals=Day(profile=self.profile, peak_rps=peak_rps),
            duration_s=self.day_duration_s,
            # A fleet does not begin its day with the lights off.
            warmup_s=self.day_duration_s / 24,
            seed=self.seed,
            **lengths,
        )


def _fingerprint(file: Path) -> str:
    """Digest of a file; of one that would take long to read, its size and time."""
    status = file.stat()
    if status.st_size > 64 * 2**20:
        return f"{status.st_size} {status.st_mtime_ns}"
    return hashlib.sha256(file.read_bytes()).hexdigest()


QUICK: dict[str, Any] = {
    # Up to the largest batch, so that the twin need not go beyond what was measured.
    "batches": (1, 32),
    "repeats": 1,
    "load_shares": (0.15, 0.3),
    "load_duration_s": 10.0,
    "served_variants": 1,
    "peak_replicas": 2,
    "day_duration_s": 7_200,
    "trials": 6,
    "choice_seeds": (50, 51),
    "unseen_seeds": (100, 101),
    "distil_tokens": 30_000,
    "ask": {"tokens": 4_096, "questions": 60},
}
"""Reduced sizes that still pass through every stage."""
