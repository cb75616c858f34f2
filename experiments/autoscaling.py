"""The cheapest autoscaler of a day, beside what people use and what nobody can beat.

    python -m experiments.autoscaling [FILE] [--out FOLDER] [--ray ADDRESS]
    python -m experiments.autoscaling [FILE] --read FOLDER [--bundle FOLDER]

FILE is experiments/autoscaling.yaml unless given. Leaves the search's tables and figures in FOLDER; a
search that was killed goes on. With --read it answers from what a search has left, and searches nothing;
--bundle then exports its winner.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from pydantic import Field

from serving.plan import EngineArgs, Slo, Variant
from serving.values import Value
from simulations.bounds import capacity_rps
from simulations.latency import LatencyModel
from simulations.traffic import Workload
from workbench.bundle_evidence import Evidence
from workbench.export import export
from workbench.measure import Measurement
from workbench.progress import print_table
from workbench.report import fleet_figures
from workbench.tune import Candidate, SearchSpace, Tuning, tune
from workbench.tune.equals import ARTICLE_HPA, AS_GOOD

HERE = Path(__file__).parent
_WINDOW_S = 600.0


class Declared(Value):
    """A search, declared in YAML."""

    question: str
    latency: Path
    """A latency model, or a result of `workbench fidelity` that holds one; beside this file."""
    model: str
    revision: str | None = None
    """Which commit of the model is shipped; what was measured has its shape."""
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
    def load(cls, path: Path) -> Declared:
        """Read a declaration."""
        return cls.model_validate(yaml.safe_load(path.read_text()))

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
        if name == ARTICLE_HPA and AS_GOOD in table.index:
            ratio = table.loc[AS_GOOD]["gpu_hours"] / other["gpu_hours"]
            held = "holds" if ratio <= claimed else "does not hold"
            said.append(f"{ratio:.2f} times with {AS_GOOD}: at most {claimed:g} {held}.")
    said.append(tuning.at_equal_attainment_in_words())
    return "\n".join([*said, *(f"Doubt: {doubt}." for doubt in tuning.own_doubts)])


def steps_to_the_bound(declared: Declared, tuning: Tuning) -> pd.DataFrame:
    """From what nobody can beat to the winner: what each step adds, in GPU hours a day.

    Requests spread evenly over as many replicas as they need, as the busiest minute is sized; whole
    replicas that follow the traffic every ten minutes, knowing it; and the winner, who starts replicas
    ahead, keeps some in reserve and lets them go late. The first step is what the bound does not see.
    """
    candidate, engine = declared.candidate(), tuning.winner.engine
    capacity = capacity_rps(declared.workload, candidate.latency, engine, declared.slo)
    gpus = tuning.winner.gpus_per_replica
    spread, whole = [], []
    for seed in declared.unseen_seeds:
        load = declared.workload.at(seed=declared.workload.seed + seed)
        arrived_at_s = load.schedule().arrived_at_s
        windows = np.bincount((arrived_at_s // _WINDOW_S).astype(np.int64))
        needed = windows / _WINDOW_S / capacity
        hours = 24 * _WINDOW_S / load.duration_s * gpus
        spread.append(hours * float(needed.sum()))
        whole.append(hours * float(np.maximum(1, np.ceil(needed)).sum()))
    table = tuning.table().set_index("name")["gpu_hours"]
    rows = {
        "clairvoyant bound": table["clairvoyant bound"],
        "evenly spread requests": float(np.mean(spread)),
        "whole replicas, every ten minutes": float(np.mean(whole)),
        "winner": table[tuning.winner.name],
    }
    found = pd.DataFrame({"gpu_hours": rows})
    return found.assign(added=found["gpu_hours"].diff()).reset_index(names="what")


def main() -> None:
    """Search or go on, write the tables and the figures, and print the answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=HERE / "autoscaling.yaml")
    parser.add_argument("--out", type=Path, default=Path("runs/autoscaling"))
    parser.add_argument("--ray", help="address of a Ray cluster that runs the trials")
    parser.add_argument(
        "--read", type=Path, help="folder of a search that is over: its answer alone"
    )
    parser.add_argument("--bundle", type=Path, help="with --read: export the winner there")
    asked = parser.parse_args()
    declared = Declared.load(asked.file)
    if asked.read is not None:
        tuning = Tuning.read(asked.read)
        say(declared, tuning)
        if asked.bundle is not None:
            bundle(declared, tuning, asked.bundle)
        return
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
    say(declared, tuning)


def bundle(declared: Declared, tuning: Tuning, folder: Path) -> Path:
    """Export the winner with the measurements that its latency model was fitted to."""
    loops = sorted((HERE / declared.latency).parent.glob("calibration/**/measurement.json"))
    measured = [Measurement.read(path.parent) for path in loops]
    variant = tuning.winner.variant.model_copy(update={"revision": declared.revision})
    shipped = replace(tuning, winner=tuning.winner.model_copy(update={"variant": variant}))
    evidence = Evidence.of(
        measurements=[one for one in measured if not one.invalid],
        latency=declared.candidate().latency,
        tuning=shipped,
    )
    return export(shipped.winner, folder, evidence=evidence)


def say(declared: Declared, tuning: Tuning) -> None:
    """Print the tables and the answer."""
    print_table(tuning.table())
    print_table(steps_to_the_bound(declared, tuning))
    print(answer(declared, tuning))


if __name__ == "__main__":
    main()
