"""The cheapest autoscaler of a day, beside what people use and what nobody can beat.

    python -m experiments.autoscaling [FILE] [--out FOLDER] [--quick] [--ray ADDRESS]

FILE is experiments/autoscaling.yaml unless given. Leaves the search's tables and figures in FOLDER; a
search that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from serving.plan import EngineArgs, Slo, Variant
from serving.values import Value
from simulations.latency import LatencyModel
from simulations.traffic import Workload
from workbench.progress import print_table
from workbench.report import fleet_figures
from workbench.tune import Candidate, SearchSpace, Tuning, tune

HERE = Path(__file__).parent


class Declared(Value):
    """A search, declared in YAML."""

    question: str
    latency: Path
    """A latency model, or a result of `workbench fidelity` that holds one; beside this file."""
    model: str
    engine: EngineArgs
    slo: Slo
    workload: Workload
    space: SearchSpace = SearchSpace()
    trials: int = Field(ge=1)
    seeds: tuple[int, ...]
    choice_seeds: tuple[int, ...]
    unseen_seeds: tuple[int, ...]
    neighbour_seeds: int
    claims: dict[str, float]
    """{baseline: the winner's GPU hours over its own that are claimed}."""

    @classmethod
    def load(cls, path: Path, *, quick: bool) -> Declared:
        """Read a declaration; quick applies the changes that it names for a first look."""
        fields: dict[str, Any] = yaml.safe_load(path.read_text())
        changes = fields.pop("quick", {})
        for name, value in changes.items() if quick else ():
            *above, last = name.split(".")
            place = fields
            for part in above:
                place = place[part]
            place[last] = deepcopy(value)
        return cls.model_validate(fields)

    def candidate(self) -> Candidate:
        """The variant with the model of its steps."""
        found = json.loads((HERE / self.latency).read_text())
        latency = LatencyModel.model_validate(found.get("latency", found))
        return Candidate(variant=Variant(name=latency.variant, model=self.model), latency=latency)


def answer(declared: Declared, tuning: Tuning) -> str:
    """Whether each claim holds, and where the winner stands."""
    table = tuning.table().set_index("name")
    won = table.loc[tuning.winner.name]
    said = [tuning.generalisation_in_words()]
    for name, claimed in declared.claims.items():
        other = table.loc[name]
        ratio = won["gpu_hours"] / other["gpu_hours"]
        held = "holds" if ratio <= claimed else "does not hold"
        said.append(f"{ratio:.2f} times the GPU hours of {name}: at most {claimed:g} {held}.")
        lost = other["slo_attainment"] - won["slo_attainment"]
        if lost > 0:  # never of the bound, whose attainment is not known
            said.append(f"{100 * lost:.2f} points of attainment are lost against {name}.")
    return "\n".join([*said, *(f"Doubt: {doubt}." for doubt in tuning.own_doubts)])


def main() -> None:
    """Search or go on, write the tables and the figures, and print the answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=HERE / "autoscaling.yaml")
    parser.add_argument("--out", type=Path, default=Path("runs/autoscaling"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--ray", help="address of a Ray cluster that runs the trials")
    asked = parser.parse_args()
    declared = Declared.load(asked.file, quick=asked.quick)
    tuning = tune(
        [declared.candidate()],
        declared.workload,
        declared.slo,
        engine=declared.engine,
        space=declared.space,
        trials=declared.trials,
        seeds=declared.seeds,
        choice_seeds=declared.choice_seeds,
        unseen_seeds=declared.unseen_seeds,
        neighbour_seeds=declared.neighbour_seeds,
        storage=asked.out / "study.db",
        n_jobs=len(os.sched_getaffinity(0)),
        ray=asked.ray,
        on_progress=lambda doing, share: print(f"{share:4.0%}  {doing}", flush=True),
    )
    tuning.write(asked.out)
    figures = {
        "cost": fleet_figures.cost_of_candidates(tuning),
        "attainment": fleet_figures.cost_against_attainment(tuning),
        "day": tuning.winner_result.plot_day(),
        "sensitivity": fleet_figures.sensitivity(tuning),
    }
    for name, figure in figures.items():
        figure.write_html(asked.out / f"{name}.html", config={"displayModeBar": False})
    print_table(tuning.table())
    print(answer(declared, tuning))


if __name__ == "__main__":
    main()
