"""Running stages of the pipeline from a command: settings, display, the table at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from workbench.cli.common import leave, show, tell_doubts
from workbench.cli.runs import tell_untracked

if TYPE_CHECKING:
    from workbench.pipeline import Pipeline
    from workbench.settings import Settings


def settings_of(workdir: Path | None, **chosen: Any) -> Settings:
    """The settings that a data directory was last used with, changed by what was chosen.

    Without a directory: the defaults, changed by what was chosen.
    """
    from workbench.settings import Settings

    path = workdir / "settings.json" if workdir else None
    known = Settings.read(path) if path and path.exists() else Settings()
    limits = {key: chosen.pop(key, None) for key in ("ttft_p99_s", "tpot_p99_s", "e2e_p99_s")}
    given = {key: value for key, value in limits.items() if value is not None}
    if given:
        chosen["slo"] = known.slo.model_dump() | given
    changed = {key: value for key, value in chosen.items() if value is not None}
    return Settings.model_validate(known.model_dump() | changed)


def open_pipeline(workdir: Path, settings: Settings) -> Pipeline:
    """The pipeline over a data directory."""
    from workbench.pipeline import Pipeline, keep_caches_in

    # numba reads its settings once, when the stages import it.
    keep_caches_in(workdir / "cache")
    from workbench.stages import STAGES

    return Pipeline(workdir, settings, STAGES, {"model": settings.model_state()})


def run_stages(workdir: Path, settings: Settings, names: list[str], *, as_json: bool) -> None:
    """Run stages with a display, then show what the last one found."""
    pipeline = open_pipeline(workdir, settings)
    pipeline.run(names or list(pipeline.stages), to_stderr=as_json)
    tell_untracked(workdir)
    _show(pipeline, names[-1] if names else "report", as_json=as_json)


def _show(pipeline: Pipeline, name: str, *, as_json: bool) -> None:
    from workbench.progress import print_table
    from workbench.results import Results
    from workbench.tables import table
    from workbench.track import chosen_uri

    show(table(pipeline, name), as_json=as_json)
    tell_pipeline_doubts(pipeline, name)
    if name in ("tune", "report"):
        tuning = Results(pipeline).tuning()
        typer.echo(tuning.generalisation_in_words(), err=as_json)
        tell_doubts(tuning.own_doubts, "doubt")
    if name == "verify":
        verification = Results(pipeline).verification()
        if verification is None or not verification.holds:
            leave(1)
    if name == "report" and not as_json:
        print_table(table(pipeline, "verify"))
        runs = pipeline.workdir
        typer.echo(f"report   {runs / 'report.html'}")
        if pipeline.is_done("export"):
            typer.echo(f"bundle   {runs / 'export' / 'bundle'}")
        typer.echo(f"compare  mlflow ui --backend-store-uri {chosen_uri(runs)}")
        typer.echo(f"next     workbench tune --trials 200 --ttft-p99 0.3 --workdir {runs}")


def tell_pipeline_doubts(pipeline: Pipeline, name: str) -> None:
    """Say on standard error that a result rests on measurements that cannot be trusted."""
    from workbench.results import Results

    if name in ("compress", "sweep", "serve"):
        return
    models = Results(pipeline).latency_models().values()
    found = [f"{model.variant}: {doubt}" for model in models for doubt in model.doubts]
    tell_doubts(found, "rests on what cannot be trusted")
