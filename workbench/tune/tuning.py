"""What the search found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from serving.errors import InputError
from serving.plan import Plan
from serving.values import Estimate, one_line, shown_html
from simulations.result import Prediction, SimResult
from workbench.tune import equals
from workbench.tune.unseen import COLUMNS, generalisation, generalisation_in_words

if TYPE_CHECKING:
    import plotly.graph_objects as go

SCHEMA_VERSION = 3
_TABLES = ("trials", "baselines", "neighbours", "per_seed", "timeline", "alerts")
_SHOWN = ["name", "gpu_hours", "cost_usd", "ttft_p99_s", "slo_attainment", "keeps_slo"]


@dataclass(frozen=True)
class Tuning:
    """The winner of a search, and what it is held against.

    Attributes:
        winner: the cheapest plan that keeps the SLO on the seeds of the final choice, which the search
            had not seen.
        winner_result: of the winner on unseen traffic: that of neither the search nor the choice.
        prediction: what one replica of the winner will show under a replay of its busy hour.
        trials: one row per trial, on the seeds of the search: number, state, metrics, keeps_slo
            (worst seed within every limit), over_limit, seeds_run, error, metric, target, and the
            point in the space.
        baselines: on that same unseen traffic as the winner: name, variant, keeps_slo, and the
            metrics of SimResult.
        rejected: variants that were not searched, with the reason.
        own_doubts: what speaks against the winner itself, however good the measurements are: it is
            fragile, as neighbours break the SLO, or does not keep the SLO on unseen traffic or at all.
        seen: {name: mean} of the winner on the search's own seeds, of which `seen_seeds` were run.
        passed_over: cheaper trials that kept the SLO in the search and broke it in the final choice.
        neighbours: one step in each free parameter, on unseen traffic (workbench/tune/neighbours.py).
    """

    winner: Plan
    winner_result: SimResult
    prediction: Prediction
    trials: pd.DataFrame
    baselines: pd.DataFrame
    rejected: Mapping[str, str] = field(default_factory=dict)
    own_doubts: tuple[str, ...] = ()
    seen: Mapping[str, float] = field(default_factory=dict)
    seen_seeds: int = 0
    passed_over: int = 0
    neighbours: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=COLUMNS))

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why measurements that the winner rests on cannot be trusted, where they were forced."""
        return self.prediction.doubts

    def generalisation(self) -> pd.DataFrame:
        """The winner on the search's own traffic and on unseen traffic, and what is lost."""
        return generalisation(self.seen, self.winner_result)

    def generalisation_in_words(self) -> str:
        """The same in words; empty where it is not known."""
        seeds = (self.seen_seeds, len(self.winner_result.per_seed))
        return generalisation_in_words(self.generalisation(), seeds, self.passed_over)

    def at_equal_attainment_in_words(self) -> str:
        """What is saved against the article's HPA, also where no fewer requests may meet the SLO."""
        return equals.in_words(self.table(), self.winner.name)

    def table(self) -> pd.DataFrame:
        """The winner beside the baselines."""
        result = self.winner_result
        own: dict[str, Any] = {name: estimate.value for name, estimate in result.metrics.items()}
        own |= {"name": self.winner.name, "variant": self.winner.variant.name}
        rows = pd.DataFrame([{**own, "keeps_slo": result.keeps_slo}])
        columns = [name for name in self.baselines if name in rows]
        return pd.concat([rows[columns], self.baselines], ignore_index=True)

    def front(self) -> pd.DataFrame:
        """The trials that no other beats in cost and attainment, the cheapest first.

        On the seeds of the search; trials that were stopped before their last seed are left out.
        """
        ran = self.trials[self.trials["state"].eq("COMPLETE")]
        if "stopped" in ran:
            ran = ran[ran["stopped"].eq("")]
        ran = ran.sort_values(
            ["gpu_hours", "slo_attainment"], ascending=[True, False], kind="stable"
        )
        best_before = ran["slo_attainment"].cummax().shift(fill_value=-np.inf)
        return ran[ran["slo_attainment"] > best_before].reset_index(drop=True)

    def write(self, folder: Path) -> Path:
        """Write one parquet per table, plan.json and, last and whole, tuning.json."""
        folder.mkdir(parents=True, exist_ok=True)
        head_path = folder / "tuning.json"
        head_path.unlink(missing_ok=True)
        result = self.winner_result
        tables = {
            "trials": self.trials,
            "baselines": self.baselines,
            "neighbours": self.neighbours,
            "per_seed": result.per_seed,
            "timeline": result.timeline,
            "alerts": result.alerts,
        }
        for name, table in tables.items():
            table.to_parquet(folder / f"{name}.parquet", index=False)
        self.winner.write(folder / "plan.json")
        head = {
            "schema_version": SCHEMA_VERSION,
            "winner": self.winner.model_dump(mode="json", by_alias=True),
            "plan_name": result.plan_name,
            "metrics": {name: e.model_dump() for name, e in result.metrics.items()},
            "keeps_slo": result.keeps_slo,
            "prediction": self.prediction.model_dump(mode="json"),
            "rejected": dict(self.rejected),
            "own_doubts": list(self.own_doubts),
            "seen": dict(self.seen),
            "seen_seeds": self.seen_seeds,
            "passed_over": self.passed_over,
        }
        partial = head_path.with_name("tuning.json.partial")
        partial.write_text(json.dumps(head, indent=2) + "\n")
        partial.replace(head_path)
        return folder

    @classmethod
    def read(cls, folder: Path) -> Tuning:
        """Read what `write` wrote.

        Raises:  InputError: not there, incomplete, or of another schema version.
        """
        remedy = "Tune again into another folder."
        try:
            head: dict[str, Any] = json.loads((folder / "tuning.json").read_text())
            if head.get("schema_version") != SCHEMA_VERSION:
                raise InputError(
                    f"{folder} has schema_version(={head.get('schema_version')!r}),"
                    f" this version reads {SCHEMA_VERSION}",
                    remedy=remedy,
                )
            tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in _TABLES}
            prediction = Prediction.model_validate(head["prediction"])
            metrics = {name: Estimate.model_validate(e) for name, e in head["metrics"].items()}
            return cls(
                winner=Plan.model_validate(head["winner"]),
                winner_result=SimResult(
                    plan_name=head["plan_name"],
                    metrics=metrics,
                    per_seed=tables["per_seed"],
                    timeline=tables["timeline"],
                    alerts=tables["alerts"],
                    keeps_slo=head["keeps_slo"],
                    doubts=prediction.doubts,
                ),
                prediction=prediction,
                trials=tables["trials"],
                baselines=tables["baselines"],
                rejected=head["rejected"],
                own_doubts=tuple(head["own_doubts"]),
                seen=head["seen"],
                seen_seeds=head["seen_seeds"],
                passed_over=head["passed_over"],
                neighbours=tables["neighbours"],
            )
        except ValidationError as error:
            raise InputError(
                f"{folder} is not a tuning: {one_line(error)}", remedy=remedy
            ) from error
        except (OSError, KeyError, json.JSONDecodeError) as error:
            raise InputError(f"{folder} is not a whole tuning ({error})", remedy=remedy) from error

    def _repr_html_(self) -> str:
        table = self.table()
        shown = table[[name for name in _SHOWN if name in table]]
        kept = int(self.trials["keeps_slo"].sum())
        won = f"{self.winner.name} won of {len(self.trials)} trials, {kept} of which keep the SLO"
        notes = [f"not searched: {name}, {why}" for name, why in self.rejected.items()]
        notes += [self.generalisation_in_words()] if self.seen else []
        notes += [said] if (said := self.at_equal_attainment_in_words()) else []
        notes += [f"doubt: {doubt}" for doubt in self.own_doubts]
        return shown_html(won, shown, doubts=self.doubts, notes=notes)

    def plot_front(self) -> go.Figure:
        """Every trial by GPU hours and attainment, the Pareto front, the winner and the baselines."""
        from workbench.report.fleet_figures import cost_against_attainment

        return cost_against_attainment(self)

    def plot_cost(self) -> go.Figure:
        """GPU hours of the winner beside the baselines; hatched where the SLO breaks."""
        from workbench.report.fleet_figures import cost_of_candidates

        return cost_of_candidates(self)
