"""The payoff map: what each variant gains at each load, joined with what it keeps of the quality.

A speed-up is a ratio to the parent on the same prompts, repeat by repeat; quality is the variant's own.
From the two follow the front (no other is better in both) and the crossovers (which variant is ahead
changes with the load).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml
from pydantic import ValidationError

from serving.errors import InputError
from serving.plan import Variant
from serving.values import Estimate, Value, one_line, shown_html
from workbench.compress.recipe import Recipe, recipes_of
from workbench.measure.study import Study, StudyResult, ratio_over_repeats, read_study

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.measure.measurement import Measurement

SPEED = "output_tokens_per_s"
_LOAD = ["prompt_tokens", "output_tokens", "batch"]
_MEANS = (
    *(SPEED, "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s"),
    *("joules_per_token", "usd_per_million_tokens", "memory_used_peak_bytes"),
)
CLAIM_SIZE, CLAIM_SPEED, CLAIM_LOSS = 4.0, (2.0, 3.0), 0.01
"""What the usual advice promises of FP32 to INT8: size, speed, loss."""


class Question(Value):
    """What to compare, declared as data: recipes of variants, and the study that measures them all.

    Attributes:
        recipes: how each variant is made.
        study: the loads.
        usd_per_hour: of one GPU, or of the machine where there is none; None leaves dollars out.
    """

    recipes: tuple[Recipe, ...]
    study: Study
    usd_per_hour: float | None = None

    @classmethod
    def load(cls, path: Path) -> Question:
        """Read it from YAML.

        Raises:  InputError: not there, or not such a declaration.
        """
        try:
            found = yaml.safe_load(path.read_text())
            if not isinstance(found, dict):
                raise InputError(f"{path} is no mapping", remedy=_SEE)
            recipes = recipes_of(found.get("recipes"), f"{path}: recipes")
            return cls.model_validate({**found, "recipes": recipes})
        except (OSError, yaml.YAMLError) as error:
            raise InputError(
                f"cannot read {path} ({str(error).splitlines()[0]})", remedy="Check the file."
            ) from error
        except ValidationError as error:
            raise InputError(f"{path}: {one_line(error)}", remedy=_SEE) from error


_SEE = "See experiments/payoff-cpu.yaml."


@dataclass(frozen=True)
class Payoff:
    """What variants gain and keep.

    Attributes:
        table: one row per variant and load: prompt_tokens, output_tokens, batch, the means over repeats
            of speed and latencies, speedup with low and high, weights_mib, kv_capacity_tokens, recovery
            with its interval, quality (keeps, in doubt, loses), on_front.
        parent: the variant that speed-ups are ratios to.
        variants: all of them.
        max_quality_loss: share of the score that may be lost.
        ratios: repeat by repeat; index variant, load and repeat, values of SPEED.
    """

    table: pd.DataFrame
    parent: str
    variants: tuple[Variant, ...]
    max_quality_loss: float
    ratios: pd.Series

    @classmethod
    def of(
        cls,
        result: StudyResult,
        variants: Sequence[Variant],
        *,
        usd_per_hour: float | None = None,
        max_quality_loss: float = 0.02,
    ) -> Payoff:
        """Join a study of closed loops with the variants' quality.

        Points that cannot be trusted are left out.

        Raises:  InputError: the parent was not measured, or no closed loop was.
        """
        parent = next((variant.name for variant in variants if variant.parent is None), "")
        points = pd.DataFrame()
        if result.measurements:
            points = result.frame(usd_per_hour=usd_per_hour)
            points = points[points["valid"] & points["batch"].notna()]
        if points.empty or parent not in set(points["variant"]):
            raise InputError(
                f"the study has no closed loop of the parent(={parent!r}) that can be trusted",
                remedy="Give it concurrency, measure the parent too, and look at what was left out.",
            )
        speed = points.set_index(["variant", *_LOAD, "repeat"])[SPEED].sort_index()
        measured = {m.variant.name: m for m in result.measurements}
        by_name = {variant.name: variant for variant in variants}
        rows = []
        for at, group in points.groupby(["variant", *_LOAD], sort=False):
            name, load = str(at[0]), at[1:]
            ratio = _ratio(speed, name, parent, load)
            if ratio is None or name not in by_name:
                continue
            rows.append(
                {
                    **dict(zip(["variant", *_LOAD], at, strict=True)),
                    **{mean: float(group[mean].mean()) for mean in _MEANS if mean in group},
                    **{"speedup": ratio.value, "low": ratio.low, "high": ratio.high},
                    "repeats": ratio.n,
                    "weights_mib": _weights_mib(by_name[name], measured[name]),
                    "kv_capacity_tokens": measured[name].replica.kv_capacity_tokens,
                    **_worth(by_name[name], max_quality_loss),
                }
            )
        table = pd.DataFrame(rows)
        order = {name: at for at, name in enumerate(by_name)}
        table = table.sort_values(
            ["variant", *_LOAD], key=lambda c: c.map(order) if c.name == "variant" else c
        ).reset_index(drop=True)
        table["on_front"] = False
        for _, rows_at in table.groupby(_LOAD):
            table.loc[rows_at.index, "on_front"] = _front(rows_at)
        return cls(table, parent, tuple(variants), max_quality_loss, speed)

    @classmethod
    def read(cls, folder: Path, **how: Any) -> Payoff:
        """The map of a study that lies in a folder, with the quality its variants had then.

        Args:    how: usd_per_hour and max_quality_loss, as for `of`.
        Raises:  InputError: no study lies there, or none that can be mapped.
        """
        result = read_study(folder)
        variants = {m.variant.name: m.variant for m in result.measurements}
        return cls.of(result, list(variants.values()), **how)

    def front(self, batch: float, prompt_tokens: float, output_tokens: float) -> pd.DataFrame:
        """The variants at one load that no other beats in both speed and quality, the fastest first."""
        at = self.at(batch, prompt_tokens, output_tokens)
        return at[at["on_front"]].sort_values("speedup", ascending=False)

    def at(self, batch: float, prompt_tokens: float, output_tokens: float) -> pd.DataFrame:
        """All variants at one load."""
        wanted = dict(zip(_LOAD, (prompt_tokens, output_tokens, batch), strict=True))
        return self.table[(self.table[list(wanted)] == pd.Series(wanted)).all(axis=1)]

    def crossovers(self) -> pd.DataFrame:
        """Where the faster of two variants becomes the slower as the batch grows.

        Only changes that the repeats can tell: the interval of the ratio lies above 1 at one batch and
        below it at a larger one.

        Returns: prompt_tokens, output_tokens, first (ahead at small batches), then (at large ones),
                 from_batch, to_batch, ahead_by, behind_by (ratios of first to then at the two).
        """
        found = []
        for (prompt, output), rows in self.table.groupby(["prompt_tokens", "output_tokens"]):
            batches = sorted(rows["batch"].unique())
            for a, b in combinations(rows["variant"].unique(), 2):
                told = [
                    (batch, ratio)
                    for batch in batches
                    if (ratio := _ratio(self.ratios, a, b, (prompt, output, batch))) is not None
                    and (ratio.low > 1 or ratio.high < 1)
                ]
                for (small, at_small), (large, at_large) in pairwise(told):
                    if (at_small.value > 1) != (at_large.value > 1):
                        swap = at_small.value < 1
                        found.append(
                            {
                                "prompt_tokens": prompt,
                                "output_tokens": output,
                                "first": b if swap else a,
                                "then": a if swap else b,
                                "from_batch": small,
                                "to_batch": large,
                                "ahead_by": _either(at_small.value, swap),
                                "behind_by": _either(at_large.value, swap),
                            }
                        )
        columns = ["prompt_tokens", "output_tokens", "first", "then", "from_batch", "to_batch"]
        return pd.DataFrame(found, columns=[*columns, "ahead_by", "behind_by"])

    def claim(self, before: str = "fp32", after: str = "int8-gptq") -> dict[str, Any] | None:
        """FP32 to INT8 as the usual advice states it: 4x smaller, 2-3x faster, less than 1 % lost.

        Returns: size_ratio, and rows with the speed ratio at each load; None where one of the two was
                 not measured.
        """
        by_name = {variant.name: variant for variant in self.variants}
        if not {before, after} <= set(self.table["variant"]):
            return None
        rows = []
        for load in self.table[_LOAD].drop_duplicates().itertuples(index=False, name=None):
            ratio = _ratio(self.ratios, after, before, load)
            if ratio is not None:
                speed = {"speedup": ratio.value, "low": ratio.low, "high": ratio.high}
                rows.append({**dict(zip(_LOAD, load, strict=True)), **speed})
        kept, whole = by_name[after].quality, by_name[before].quality
        weights = self.table.groupby("variant")["weights_mib"].first()
        return {
            "before": before,
            "after": after,
            "size_ratio": weights[before] / weights[after],
            "speed": pd.DataFrame(rows),
            "kept": kept.recovery if kept else None,
            "before_kept": whole.recovery if whole else None,
        }

    def words(self) -> str:
        """The map as a paragraph, made from its numbers."""
        from workbench.report.payoff_words import paragraph

        return paragraph(self)

    def plot(self) -> list[go.Figure]:
        """Quality by speed with the front, and speed-up over load."""
        from workbench.report.payoff_figures import payoff_figures

        return payoff_figures(self)

    def write(self, folder: Path) -> None:
        """The table, the crossovers and the paragraph, as files."""
        folder.mkdir(parents=True, exist_ok=True)
        self.table.to_parquet(folder / "payoff.parquet", index=False)
        self.crossovers().to_csv(folder / "crossovers.csv", index=False)
        (folder / "payoff.md").write_text(self.words() + "\n")

    def _repr_html_(self) -> str:
        from workbench.tables import payoff_table

        return shown_html(self.words(), payoff_table(self))


def _weights_mib(variant: Variant, measured: Measurement) -> float:
    """Of the files; where there are none, as with random weights, of what a step reads."""
    if variant.size_bytes or measured.cost is None:
        return variant.size_mib
    return measured.cost.weight_bytes / 2**20


def _worth(variant: Variant, max_quality_loss: float) -> dict[str, Any]:
    found: dict[str, Any] = {"quality": "not judged"}
    quality = variant.quality
    if quality is not None:
        found |= {
            "recovery": quality.recovery.value,
            "recovery_low": quality.recovery.low,
            "recovery_high": quality.recovery.high,
            "perplexity_ratio": quality.perplexity_ratio.value,
            "quality": quality.verdict(max_quality_loss),
        }
    return found


def _ratio(speed: pd.Series, name: str, base: str, load: tuple[Any, ...]) -> Estimate | None:
    """How many times faster at one load, over the repeats that both have."""
    try:
        own, theirs = (speed.loc[(who, *load)] for who in (name, base))
    except KeyError:
        return None
    both = (own / theirs).dropna()
    return ratio_over_repeats(both) if len(both) else None


def _front(rows: pd.DataFrame) -> list[bool]:
    """Whether no other row is at least as fast and as good, and better in one."""
    if "recovery" not in rows:
        return [False] * len(rows)
    points = list(rows[["speedup", "recovery"]].itertuples(index=False, name=None))

    def beaten(own: tuple[float, float]) -> Iterator[bool]:
        return (a >= own[0] and b >= own[1] and (a, b) != own for a, b in points)

    return [own[1] == own[1] and not any(beaten(own)) for own in points]


def _either(ratio: float, swap: bool) -> float:
    return 1 / ratio if swap else ratio
