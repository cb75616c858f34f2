"""The `workbench` command: the composition root, the one module that knows every other.

Nothing heavy is imported before a command runs, so that `workbench --help` answers at once.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer
from pydantic import ValidationError

from serving.errors import InputError, WorkbenchError
from serving.values import one_line

if TYPE_CHECKING:
    import pandas as pd

    from workbench.pipeline import Pipeline
    from workbench.progress import OnProgress
    from workbench.settings import Settings

P = ParamSpec("P")

app = typer.Typer(
    name="workbench",
    help="Measure, simulate, tune and export LLM serving: from a model to a verified plan.",
    epilog="Start with: workbench demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
model_app = typer.Typer(help="The small chat model that the demo uses.", no_args_is_help=True)
app.add_typer(model_app, name="model")

Workdir = Annotated[
    Path, typer.Option(help="Data directory: everything that a run writes lands here.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Model = Annotated[
    str | None, typer.Option(help="Local folder or hub id.", show_default="the shipped demo model")
]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.", show_default="0")]
Ttft = Annotated[
    float | None, typer.Option("--ttft-p99", help="SLO: p99 TTFT in seconds.", show_default="0.5")
]
Tpot = Annotated[float | None, typer.Option("--tpot-p99", help="SLO: p99 TPOT in seconds.")]
E2e = Annotated[float | None, typer.Option("--e2e-p99", help="SLO: p99 E2E latency in seconds.")]
PeakRps = Annotated[
    float | None,
    typer.Option(help="Requests a second in the busiest hour.", show_default="5 replicas' worth"),
]
Numbers = Annotated[str | None, typer.Option(help="Comma-separated.")]
DEFAULT_WORKDIR = Path("runs")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what a user can mend into one line and exit code 2, and Ctrl-C into a kept state."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("\nInterrupted. Finished work is kept; the same command goes on.", err=True)
            # Libraries leave threads that would block an ordinary exit.
            _leave(130)
        except (WorkbenchError, ValidationError) as error:
            if kwargs.get("debug"):
                raise
            text = one_line(error) if isinstance(error, ValidationError) else str(error)
            typer.echo(f"workbench: {' '.join(text.split())}", err=True)
            _leave(2)
        except Exception as error:
            if kwargs.get("debug"):
                raise
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            typer.echo(f"workbench: unexpected {text} (--debug shows where)", err=True)
            _leave(1)

    return run


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{option}(={text!r}) is not a list of numbers", remedy="Write for example 1,2,4."
        ) from None


def _settings(workdir: Path | None, **chosen: Any) -> Settings:
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


def _open(workdir: Path, settings: Settings) -> Pipeline:
    """The pipeline over a data directory."""
    from workbench.pipeline import Pipeline, keep_caches_in

    # numba reads its settings once, when the stages import it.
    keep_caches_in(workdir / "cache")
    from workbench.stages import STAGES

    return Pipeline(workdir, settings, STAGES, {"model": settings.model_state()})


def _run(workdir: Path, settings: Settings, names: list[str], *, as_json: bool) -> None:
    """Run stages with a display, then show what the last one found."""
    pipeline = _open(workdir, settings)
    pipeline.run(names or list(pipeline.stages), to_stderr=as_json)
    _show(pipeline, names[-1] if names else "report", as_json=as_json)


def _simulate_plan(workdir: Path, settings: Settings, path: Path, *, as_json: bool) -> None:
    """Simulate the day of these settings under somebody's plan."""
    from serving.plan import Plan

    plan = Plan.read(path)
    pipeline = _open(workdir, settings)
    from simulations.simulate import simulate as simulate_day
    from workbench.results import Results
    from workbench.tables import day_table

    pipeline.require("simulate")
    results = Results(pipeline)
    models = results.latency_models()
    if plan.variant.name not in models:
        raise InputError(
            f"{path} serves variant(={plan.variant.name!r}), which was not fitted",
            remedy=f"Fitted are {sorted(models)}; measure and fit it first.",
        )
    with _display(pipeline, f"Simulate {plan.name}", as_json=as_json) as on_progress:
        result = simulate_day(
            plan,
            settings.day(results.peak_rps()),
            models[plan.variant.name],
            seeds=settings.tune_seeds,
            on_progress=on_progress,
        )
    _print(day_table(result, plan), as_json=as_json)


def _verify_bundle(workdir: Path, bundle: Path, *, as_json: bool) -> None:
    """Verify a bundle that lies anywhere."""
    pipeline = _open(workdir, _settings(None))
    from workbench.verify import verify as verify_bundle

    with _display(pipeline, f"Verify {bundle}", as_json=as_json) as on_progress:
        found = verify_bundle(bundle, folder=workdir / "verify-bundle", on_progress=on_progress)
    _print(found.rows, as_json=as_json)
    if not found.holds:
        _leave(1)


@contextmanager
def _display(pipeline: Pipeline, title: str, *, as_json: bool) -> Iterator[OnProgress]:
    from workbench.progress import Stages, quiet

    log = pipeline.workdir / "logs" / "libraries.log"
    with (
        quiet(log, to_stderr=as_json) as terminal,
        Stages([title], terminal) as display,
        display.stage(title) as on_progress,
    ):
        yield on_progress


def _show(pipeline: Pipeline, name: str, *, as_json: bool) -> None:
    from workbench.progress import print_table
    from workbench.results import Results
    from workbench.tables import table

    _print(table(pipeline, name), as_json=as_json)
    if name == "verify":
        verification = Results(pipeline).verification()
        if verification is None or not verification.holds:
            _leave(1)
    if name == "report" and not as_json:
        print_table(table(pipeline, "verify"))
        runs = pipeline.workdir
        typer.echo(f"report   {runs / 'report.html'}")
        typer.echo(f"bundle   {runs / 'export' / 'bundle'}")
        typer.echo(f"compare  mlflow ui --backend-store-uri sqlite:///{runs / 'mlflow.db'}")
        typer.echo(f"next     workbench tune --trials 200 --ttft-p99 0.3 --workdir {runs}")


def _print(found: pd.DataFrame, *, as_json: bool) -> None:
    from workbench.progress import print_table

    if as_json:
        rows = json.loads(found.to_json(orient="records", double_precision=6))
        typer.echo(json.dumps(rows, indent=2))
    else:
        print_table(found)


@app.command(epilog="Example: workbench demo --workdir runs --ttft-p99 0.5")
@guarded
def demo(
    workdir: Workdir = DEFAULT_WORKDIR,
    model: Model = None,
    seed: Seed = None,
    ttft_p99: Ttft = None,
    tpot_p99: Tpot = None,
    e2e_p99: E2e = None,
    peak_rps: PeakRps = None,
    trials: Annotated[int | None, typer.Option(help="Trials of the search.")] = None,
    quick: Annotated[bool, typer.Option(help="Reduced sizes: a look, not a result.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run the whole pipeline once on real vLLM; a second run resumes where the last one stopped."""
    from workbench.settings import QUICK

    chosen: dict[str, Any] = dict(QUICK) if quick else {}
    chosen |= {"model": model, "seed": seed, "peak_rps": peak_rps}
    chosen |= {"ttft_p99_s": ttft_p99, "tpot_p99_s": tpot_p99, "e2e_p99_s": e2e_p99}
    if trials is not None:
        chosen["trials"] = trials
    # Not those of an earlier run: `demo` after `demo --quick` is a whole demo.
    _run(workdir, _settings(None, **chosen), [], as_json=as_json)


@app.command(epilog="Example: workbench compress --model ./my-model --workdir runs")
@guarded
def compress(
    workdir: Workdir = DEFAULT_WORKDIR,
    model: Model = None,
    seed: Seed = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make INT8 and pruned-and-distilled variants and judge their quality against the parent."""
    settings = _settings(workdir, model=model, seed=seed)
    _run(workdir, settings, ["compress"], as_json=as_json)


@app.command(epilog="Example: workbench measure --batches 1,8,32 --rates 2,5,10 --duration-s 20")
@guarded
def measure(
    workdir: Workdir = DEFAULT_WORKDIR,
    model: Model = None,
    batches: Numbers = None,
    rates: Numbers = None,
    duration_s: Annotated[float | None, typer.Option(help="Length of each load.")] = None,
    seed: Seed = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Sweep batch sizes offline, then send open-loop Poisson load to a real vLLM server."""
    sizes = _numbers("--batches", batches)
    settings = _settings(
        workdir,
        model=model,
        batches=tuple(map(int, sizes)) if sizes else None,
        rates_rps=_numbers("--rates", rates),
        load_duration_s=duration_s,
        seed=seed,
    )
    _run(workdir, settings, ["sweep", "serve"], as_json=as_json)


@app.command(epilog="Example: workbench fit --workdir runs")
@guarded
def fit(workdir: Workdir = DEFAULT_WORKDIR, as_json: AsJson = False, debug: Debug = False) -> None:
    """Fit a latency model per variant to the engine's own step log."""
    _run(workdir, _settings(workdir), ["fit"], as_json=as_json)


@app.command(epilog="Example: workbench simulate --peak-rps 40 --ttft-p99 0.5")
@guarded
def simulate(
    workdir: Workdir = DEFAULT_WORKDIR,
    peak_rps: PeakRps = None,
    ttft_p99: Ttft = None,
    tpot_p99: Tpot = None,
    e2e_p99: E2e = None,
    plan: Annotated[Path | None, typer.Option(help="A plan.json; else rules of practice.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Simulate a day of traffic on a fleet: the article's autoscaler, or a plan of yours."""
    settings = _settings(
        workdir, peak_rps=peak_rps, ttft_p99_s=ttft_p99, tpot_p99_s=tpot_p99, e2e_p99_s=e2e_p99
    )
    if plan is None:
        _run(workdir, settings, ["simulate"], as_json=as_json)
    else:
        _simulate_plan(workdir, settings, plan, as_json=as_json)


@app.command(epilog="Example: workbench tune --trials 100 --ttft-p99 0.3")
@guarded
def tune(
    workdir: Workdir = DEFAULT_WORKDIR,
    trials: Annotated[int | None, typer.Option(help="Trials of the search.")] = None,
    peak_rps: PeakRps = None,
    ttft_p99: Ttft = None,
    tpot_p99: Tpot = None,
    e2e_p99: E2e = None,
    seed: Seed = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find the autoscaler with the fewest GPU hours that keeps the SLO."""
    settings = _settings(
        workdir,
        trials=trials,
        peak_rps=peak_rps,
        ttft_p99_s=ttft_p99,
        tpot_p99_s=tpot_p99,
        e2e_p99_s=e2e_p99,
        seed=seed,
    )
    _run(workdir, settings, ["tune"], as_json=as_json)


@app.command(epilog="Example: workbench export --workdir runs")
@guarded
def export(
    workdir: Workdir = DEFAULT_WORKDIR, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Write the winner as a bundle directory: plan, evidence, Kubernetes manifests."""
    _run(workdir, _settings(workdir), ["export"], as_json=as_json)


@app.command(epilog="Example: workbench verify --bundle runs/export/bundle")
@guarded
def verify(
    workdir: Workdir = DEFAULT_WORKDIR,
    bundle: Annotated[Path | None, typer.Option(help="Another bundle directory.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Start the exported configuration, replay load, print predicted against measured."""
    if bundle is None:
        _run(workdir, _settings(workdir), ["verify"], as_json=as_json)
    else:
        _verify_bundle(workdir, bundle, as_json=as_json)


@app.command(epilog="Example: workbench report --workdir runs")
@guarded
def report(
    workdir: Workdir = DEFAULT_WORKDIR, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Write report.html: one self-contained page with every figure."""
    _run(workdir, _settings(workdir), ["report"], as_json=as_json)


@model_app.command("train", epilog="Example: workbench model train --out my-model --seed 1")
@guarded
def model_train(
    out: Annotated[Path, typer.Option(help="Folder to write the checkpoint to.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same model.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    debug: Debug = False,
) -> None:
    """Train the demo model on the standard library and generated tasks; resumes after a crash."""
    from workbench.model.train import train
    from workbench.progress import Stages

    extra: dict[str, Any] = {} if steps is None else {"steps": steps}
    with Stages(["Train the demo model"]) as stages, stages.stage("Train the demo model") as say:

        def on_progress(step: int, total: int, loss: float, tokens_per_s: float) -> None:
            doing = f"step {step}/{total}, loss {loss:.2f}, {tokens_per_s:,.0f} tokens/s"
            say(doing, step / max(total, 1))

        folder = train(out, seed=seed, device=device, on_progress=on_progress, **extra)
    typer.echo(f"Wrote {folder}. Next: workbench demo --model {folder}")


def main() -> None:
    """Entry point of the `workbench` command."""
    app()


if __name__ == "__main__":
    main()
