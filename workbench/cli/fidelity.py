"""The command that tries the twin's predictions on a real server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.errors import InputError
from workbench.cli.common import (
    DEFAULT_WORKDIR,
    AsJson,
    Debug,
    Model,
    Numbers,
    Workdir,
    display,
    guarded,
    leave,
    numbers,
    show,
    tell_doubts,
)
from workbench.cli.loads import (
    Divisor,
    Duration,
    EngineJson,
    Force,
    LoadSeed,
    OfVariant,
    ServedName,
    Target,
    Url,
    Warmup,
    lengths_of,
)

if TYPE_CHECKING:
    from simulations.latency import LatencyModel
    from simulations.traffic import Replay
    from workbench.fidelity import Fidelity

app = typer.Typer()


@app.command(
    epilog="Examples: workbench fidelity --repeats 3 · "
    "workbench fidelity --latency runs/fit/baseline.json --shares 0.2,0.5,0.8 --strict · "
    "workbench fidelity --trace azure.csv --length-divisor 8 --prompt-tokens 50-300 · "
    "workbench fidelity --url http://HOST:8000 --measured loads/ --capacity-rps 20 · "
    "workbench fidelity --compare experiments/results/h100/fidelity"
)
@guarded
def fidelity(
    workdir: Workdir = DEFAULT_WORKDIR,
    url: Url = None,
    served_name: ServedName = None,
    model: Model = None,
    variant: OfVariant = None,
    engine: EngineJson = None,
    latency: Annotated[
        Path | None,
        typer.Option(help="A fitted model.", show_default="that of --variant, else fitted first"),
    ] = None,
    measured: Annotated[
        Path | None, typer.Option(help="Fit to the measurements in the folders of this one.")
    ] = None,
    shares: Numbers = "0.2,0.5,0.8,0.95,1.1",
    capacity_rps: Annotated[
        float | None, typer.Option(help="What the shares are of.", show_default="the twin's")
    ] = None,
    prompt_tokens: Annotated[
        str, typer.Option(help="64, 16-128 (uniform), or MEDIAN:MEAN:MAX (log-normal).")
    ] = "90:110:300",
    output_tokens: Annotated[str, typer.Option(help="The same.")] = "30:40:100",
    trace: Annotated[
        Path | None, typer.Option(help="Replay an excerpt too: Azure, BurstGPT, Mooncake, ...")
    ] = None,
    trace_start_s: Annotated[float, typer.Option(help="Where it begins in the trace.")] = 0.0,
    trace_share: Annotated[
        float, typer.Option(help="Of the capacity: at which speed the trace is played.")
    ] = 0.6,
    trace_speedup: Annotated[
        float | None, typer.Option(help="Instead of a share: so many times as fast as recorded.")
    ] = None,
    length_divisor: Divisor = 1.0,
    duration_s: Duration = 30.0,
    least_requests: Annotated[
        int, typer.Option(help="A load lasts until about so many are counted.")
    ] = 100,
    warmup_s: Warmup = 3.0,
    repeats: Annotated[int, typer.Option(min=1, help="Of each load, interleaved.")] = 3,
    seed: LoadSeed = 0,
    measure_only: Annotated[
        bool, typer.Option("--measure-only", help="Leave the comparison to another call.")
    ] = False,
    compare: Annotated[
        Path | None,
        typer.Option(help="Folder of runs, from here or elsewhere: compare what lies there."),
    ] = None,
    time_limit_s: Annotated[
        float | None, typer.Option(help="Begin no run that would not end by then; go on later.")
    ] = None,
    force: Force = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 where a cell misses its target.")
    ] = False,
    name: Annotated[str, typer.Option(help="Folder of the result below fidelity/.")] = "demo",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Is what the twin predicts what vLLM does? Loads it was not fitted to, both in numbers.

    Poisson loads at shares of the capacity, and an excerpt of a trace if one is given, are sent to a
    vLLM server several times; the twin gets the same arrivals and lengths. Finished runs are kept.
    """
    if compare is not None:
        fitted = _fitted(workdir, latency, measured, None, force=force)
        _compare(workdir, compare, fitted, force=force, strict=strict, as_json=as_json)
        return
    target = Target.of(
        workdir, url=url, served_name=served_name, model=model, variant=variant, engine=engine
    )
    from workbench.fidelity import FidelityStudy, measure_loads
    from workbench.fidelity import fidelity as compare_twin
    from workbench.fidelity.run import points_table
    from workbench.measure.points import start_server

    study = FidelityStudy(
        prompt_tokens=lengths_of("--prompt-tokens", prompt_tokens),
        output_tokens=lengths_of("--output-tokens", output_tokens),
        shares=(numbers("--shares", shares) or ()) if shares else (),
        capacity_rps=capacity_rps,
        replay=_replay(
            trace,
            trace_start_s,
            None if trace_speedup is None else (trace_speedup, trace_speedup * duration_s),
            length_divisor,
            target.engine_args.max_model_len,
        ),
        replay_share=trace_share if trace_speedup is None else None,
        duration_s=duration_s,
        least_requests=least_requests,
        warmup_s=warmup_s,
        repeats=repeats,
        seed=seed,
    )
    fitted = _fitted(workdir, latency, measured, variant, force=force)
    folder = workdir / "fidelity" / name
    options: dict[str, Any] = {
        "engine_args": target.engine_args,
        "folder": folder,
        "start": target.start or start_server,
        "force": force,
        "time_limit_s": time_limit_s,
    }
    title = "Loads on a server" if measure_only else "Twin against server"
    with display(workdir, title, as_json=as_json) as on_progress:
        options["on_progress"] = on_progress
        if measure_only:
            runs = measure_loads(study, target.variant, fitted, **options)
        else:
            found = compare_twin(study, target.variant, fitted, **options)
    if measure_only:
        show(points_table(runs.of_loads), as_json=as_json)
    else:
        _tell(found, folder, strict=strict, as_json=as_json)


def _compare(
    workdir: Path,
    folder: Path,
    latency: LatencyModel | None,
    *,
    force: bool,
    strict: bool,
    as_json: bool,
) -> None:
    from workbench.fidelity import compare_kept

    with display(workdir, f"Twin against {folder}", as_json=as_json):
        found = compare_kept(folder, latency, force=force)
    _tell(found, folder, strict=strict, as_json=as_json)


def _tell(found: Fidelity, folder: Path, *, strict: bool, as_json: bool) -> None:
    from workbench.report.fidelity_figures import fidelity_page

    page = fidelity_page(found, folder / "fidelity.html")
    show(found.rows if as_json else found.table(), as_json=as_json)
    if not as_json:
        typer.echo(str(found))
        typer.echo(f"figures  {page}")
    tell_doubts(found.doubts)
    tell_doubts(found.left_out, "left out")
    if strict and not found.holds:
        leave(1)


def _replay(
    trace: Path | None,
    start_s: float,
    as_it_is: tuple[float, float] | None,
    divisor: float,
    context: int,
) -> Replay | None:
    """The trace from a time on, its requests cut to what the engine can hold.

    Args:    as_it_is: speed-up and length of the window; None leaves both to the study.
    """
    from simulations.traffic import Replay

    if trace is None:
        return None
    return Replay.of(
        trace,
        start_s=start_s,
        **dict(zip(("speedup", "length_s"), as_it_is or (), strict=False)),
        length_divisor=divisor,
        spread_ticks=True,
        max_prompt_tokens=3 * context // 4,
        max_output_tokens=context // 4,
    )


def _fitted(
    workdir: Path, latency: Path | None, measured: Path | None, variant: str | None, *, force: bool
) -> LatencyModel | None:
    """The model that the options name; None where one is to be fitted on the same server."""
    from simulations.latency import LatencyModel

    if latency is not None and measured is not None:
        raise InputError(
            f"--latency(={str(latency)!r}) and --measured(={str(measured)!r}) exclude each other",
            remedy="Leave out one of them.",
        )
    if measured is not None:
        return _fit(measured, force=force)
    known = workdir / "fit" / f"{variant}.json"
    if latency is None and variant is not None and known.exists():
        latency = known
    return None if latency is None else LatencyModel.load(latency)


def _fit(folder: Path, *, force: bool) -> LatencyModel:
    from workbench.fit import fit
    from workbench.measure import Measurement

    heads = sorted(folder.glob("*/measurement.json"))
    if not heads:
        raise InputError(
            f"--measured(={str(folder)!r}) holds no measurements", remedy="Check the path."
        )
    points = [Measurement.read(head.parent) for head in heads]
    return fit([point for point in points if force or not point.invalid], force=force)
