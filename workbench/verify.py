"""Verify: start the bundle on real vLLM, replay load through its gateway, compare with the prediction."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from serving.errors import BundleError, InputError, MeasurementError
from serving.values import shown_html
from simulations.result import Prediction
from workbench.agreement import compare
from workbench.export import check
from workbench.measure import Engine, Measurement, measure
from workbench.measure.points import part
from workbench.serve import on_disk, serve

if TYPE_CHECKING:
    import plotly.graph_objects as go

OnProgress = Callable[[str, float], None]
_REPLAY = "replay"
_DOUBTS = "doubts.json"


@dataclass(frozen=True)
class Verification:
    """Whether the prediction was true.

    Attributes:
        rows: one per metric, as `agreement.compare` has them.
        holds: whether all rows do.
        measurement: the first replay, where it is at hand.
        doubts: those of the prediction.
    """

    rows: pd.DataFrame
    holds: bool
    measurement: Measurement | None = None
    doubts: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        """Write folder/verification.parquet (and .json, for other programs)."""
        folder.mkdir(parents=True, exist_ok=True)
        self.rows.to_json(folder / "verification.json", orient="records", indent=2)
        (folder / _DOUBTS).write_text(json.dumps(self.doubts))
        path = folder / "verification.parquet"
        self.rows.to_parquet(path, index=False)
        return path

    @classmethod
    def read(cls, folder: Path) -> Verification:
        """Read what `write` wrote, and the replay beside it.

        Raises:  InputError: nothing was verified there.
        """
        path = folder / "verification.parquet"
        if not path.exists():
            raise InputError(f"{folder} holds no verification", remedy="Run `workbench verify`.")
        rows = pd.read_parquet(path)
        replay = folder / _REPLAY
        found = Measurement.read(replay) if replay.exists() else None
        doubts = folder / _DOUBTS
        return cls(
            rows=rows,
            holds=bool(rows["holds"].all()),
            measurement=found,
            doubts=tuple(json.loads(doubts.read_text())) if doubts.exists() else (),
        )

    def _repr_html_(self) -> str:
        verdict = "holds" if self.holds else "does not hold"
        return shown_html(f"The prediction {verdict}", self.rows, doubts=self.doubts)

    def plot(self) -> go.Figure:
        """Measured over predicted for each metric, within what was tolerated."""
        from workbench.report.fleet_figures import prediction_check

        return prediction_check(self)


def verify(
    bundle: Path,
    *,
    folder: Path,
    engine: Engine | None = None,
    repeats: int = 1,
    attempts: int = 3,
    on_progress: OnProgress | None = None,
) -> Verification:
    """Replay the prediction's load on one replica of the bundle.

    Args:    engine: what answers; None starts the bundle: real vLLM behind the exported gateway.
             repeats: replays with other draws of the same load; the median of each metric is compared.
             attempts: a run that must not be trusted (a machine that is busy with something else) is
                 done again, with yet another draw.
    Returns: Verification, whether it holds or not.
    Raises:  BundleError: a bundle that is incomplete or was changed.
             MeasurementError: a run that must not be trusted: neither kept nor broken.
             InputError: repeats or attempts below 1.
    """
    for name, value in (("repeats", repeats), ("attempts", attempts)):
        if value < 1:
            raise InputError(f"{name}(={value}) must be >= 1", remedy="Ask for at least one.")
    plan = check(bundle)
    prediction = Prediction.read(bundle / "prediction.json")
    with ExitStack() as stack:
        if engine is None:
            say = on_progress or (lambda doing, share: None)
            service = stack.enter_context(
                serve(
                    bundle,
                    folder=folder / "serve",
                    replicas=1,
                    on_state=lambda state: say(state, 0.0),
                )
            )
            started = service.replicas[0]
            started.front = service.url
            engine = started
        answers = engine

        def replay(repeat: int, attempt: int) -> Measurement:
            return measure(
                on_disk(plan.variant, bundle),
                prediction.workload.at(seed=prediction.workload.seed + attempt * repeats + repeat),
                engine_args=plan.engine,
                folder=folder,
                engine=answers,
                name=_REPLAY if repeat == 0 else f"{_REPLAY}-{repeat + 1}",
                on_progress=part(on_progress, repeat / repeats, (repeat + 1) / repeats),
            )

        replays = [_trusted(replay, repeat, attempts) for repeat in range(repeats)]
    rows = _compare(prediction, replays)
    return Verification(
        rows=rows,
        holds=bool(rows["holds"].all()),
        measurement=replays[0],
        doubts=prediction.doubts,
    )


def _trusted(replay: Callable[[int, int], Measurement], repeat: int, attempts: int) -> Measurement:
    """The first run that can be trusted."""
    invalid: tuple[str, ...] = ()
    for attempt in range(attempts):
        measured = replay(repeat, attempt)
        if not measured.invalid:
            return measured
        invalid = measured.invalid
    raise MeasurementError(
        f"the replay cannot be trusted: {invalid[0]}",
        remedy="Run `workbench verify` again on a quiet machine.",
    )


def _compare(prediction: Prediction, replays: Sequence[Measurement]) -> pd.DataFrame:
    found = pd.DataFrame([replay.summary() for replay in replays])
    for metric in prediction.metrics:
        if metric not in found:
            raise BundleError(
                f"prediction.json names {metric!r}, which no measurement has",
                remedy=f"Predict any of {', '.join(map(str, found.columns))}.",
            )

    def tolerated(metric: str) -> float:
        return prediction.tolerance_p99 if "_p99_" in metric else prediction.tolerance_p50

    return compare(prediction.metrics, found, tolerated)
