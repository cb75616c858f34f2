"""Commands that measure outside the pipeline: one load, or a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.errors import InputError
from workbench.cli.common import (
    DEFAULT_WORKDIR,
    AsJson,
    Debug,
    E2e,
    Model,
    Tpot,
    Ttft,
    Workdir,
    display,
    guarded,
    leave,
    show,
    tell_doubts,
)
from workbench.cli.loads import (
    Burstiness,
    Concurrency,
    Divisor,
    Duration,
    EngineJson,
    LoadSeed,
    OfVariant,
    OutputTokens,
    PromptTokens,
    Rate,
    RayAddress,
    Requests,
    Roofline,
    ServedName,
    SharedPrefixes,
    Speedup,
    Target,
    TracePath,
    Url,
    Warmup,
    Window,
    indices,
    slo_of,
    workload_of,
)
from workbench.cli.runs import tell_untracked, track
from workbench.cli.scenarios import (
    BeyondFit,
    Latency,
    Out,
    Quick,
    Seeds,
    answer_studies,
    is_of_fleet,
    refuse_options,
)

if TYPE_CHECKING:
    from workbench.measure import Measurement
    from workbench.measure.engine import OnProgress
    from workbench.measure.roofline import Ceilings
    from workbench.measure.study import StudyResult

app = typer.Typer()


@app.command(
    epilog="Examples: workbench load --rate 8 --ttft-p99 0.5 · "
    "workbench load --url http://HOST:8000 --served-name my-model --rate 20 · "
    "workbench load --trace azure.csv --window 0:120 --speedup 2"
)
@guarded
def load(
    workdir: Workdir = DEFAULT_WORKDIR,
    url: Url = None,
    served_name: ServedName = None,
    model: Model = None,
    variant: OfVariant = None,
    engine: EngineJson = None,
    rate: Rate = None,
    burstiness: Burstiness = None,
    to_rate: Annotated[float | None, typer.Option(help="Ramp from --rate to this.")] = None,
    concurrency: Concurrency = None,
    requests: Requests = None,
    trace: TracePath = None,
    window: Window = None,
    speedup: Speedup = 1.0,
    spread_ticks: Annotated[
        bool, typer.Option("--spread-ticks", help="Spread equal time stamps over their tick.")
    ] = False,
    length_divisor: Divisor = 1.0,
    prompt_tokens: PromptTokens = None,
    output_tokens: OutputTokens = None,
    shared_prefix: SharedPrefixes = None,
    turns: Annotated[int, typer.Option(help="Turns of each conversation.")] = 1,
    think_s: Annotated[float, typer.Option(help="Mean pause between turns, seconds.")] = 1.0,
    duration_s: Duration = 30.0,
    warmup_s: Warmup = 3.0,
    seed: LoadSeed = 0,
    ttft_p99: Ttft = None,
    tpot_p99: Tpot = None,
    e2e_p99: E2e = None,
    usd_per_hour: Annotated[
        float | None, typer.Option(help="Price of a GPU hour: adds $ per million tokens.")
    ] = None,
    roofline: Roofline = False,
    name: Annotated[str | None, typer.Option(help="Folder of the result below loads/.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Send one load to a server, or to vLLM started for it, and measure what comes back."""
    workload = workload_of(
        rate=rate,
        burstiness=burstiness,
        to_rate=to_rate,
        concurrency=concurrency,
        requests=requests,
        trace=trace,
        window=window,
        speedup=speedup,
        spread_ticks=spread_ticks,
        length_divisor=length_divisor,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        shared_prefix=shared_prefix,
        turns=turns,
        think_s=think_s,
        duration_s=duration_s,
        warmup_s=warmup_s,
        seed=seed,
    )
    target = Target.of(
        workdir, url=url, served_name=served_name, model=model, variant=variant, engine=engine
    )
    from contextlib import nullcontext

    from workbench.measure import measure

    folder = workdir / "loads"
    limits = None
    with (
        display(workdir, f"Load on {url or target.variant.model}", as_json=as_json) as on_progress,
        target.attached() or nullcontext() as running,
    ):
        if roofline:
            limits = _ceilings(workdir, on_progress)
        measured = measure(
            target.variant,
            workload,
            engine_args=target.engine_args,
            folder=folder,
            engine=running,
            name=name,
            on_progress=on_progress,
        )
        track(workdir, lambda tracker: tracker.load(measured, folder / measured.name))
    slo = slo_of(ttft_p99, tpot_p99, e2e_p99)
    found = measured.summary(slo, ceilings=limits, usd_per_hour=usd_per_hour)
    tell_untracked(workdir)
    _tell(measured, found, as_json=as_json)


@app.command(
    epilog="Examples: workbench study experiments/batching-cpu.yaml · "
    "workbench study experiments/batching.yaml --model meta-llama/Llama-3.1-8B --ray auto · "
    "workbench study experiments/fleet/*.yaml --quick · "
    "workbench study experiments/fleet/qps-over-100.yaml --latency MODEL.json --seeds 10 --out found"
)
@guarded
def study(
    files: Annotated[list[Path], typer.Argument(help="Studies, as YAML; of a grid only one.")],
    workdir: Workdir = DEFAULT_WORKDIR,
    model: Model = None,
    variant: OfVariant = None,
    gpus: Annotated[
        str | None, typer.Option(help="Indices of this host's GPUs.", show_default="all")
    ] = None,
    ray: RayAddress = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Measure again what failed before.")
    ] = False,
    roofline: Roofline = False,
    quick: Quick = False,
    seeds: Seeds = None,
    out: Out = None,
    latency: Latency = None,
    force: BeyondFit = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure the grid of a study, or simulate studies of a fleet and answer them.

    Each point, or arm and seed, is done once: the same command goes on after a crash.
    """
    of_grid = {
        "--model": model,
        "--variant": variant,
        "--gpus": gpus,
        "--ray": ray,
        "--retry-failed": retry_failed,
        "--roofline": roofline,
    }
    of_fleet = {
        "--quick": quick,
        "--seeds": seeds,
        "--out": out,
        "--latency": latency,
        "--force": force,
    }
    if any(is_of_fleet(file) for file in files):
        refuse_options(of_grid, "a study of a fleet is simulated")
        answer_studies(
            files,
            workdir=workdir,
            out=out,
            quick=quick,
            seeds=seeds,
            latency=latency,
            force=force,
            as_json=as_json,
        )
        return
    refuse_options(of_fleet, "a grid is measured")
    if len(files) > 1:
        raise InputError(
            f"files(={[str(file) for file in files]}) are several grids",
            remedy="Measure one after the other.",
        )
    from workbench.measure.spread import Where
    from workbench.measure.study import Study, run_study
    from workbench.report.study_figures import study_page

    declared = Study.load(files[0])
    target = Target.of(workdir, model=model, variant=variant)
    folder = workdir / "studies" / declared.name
    limits = None
    with display(workdir, f"Study {declared.name}", as_json=as_json) as on_progress:
        if roofline:
            limits = _ceilings(workdir, on_progress)
        result = run_study(
            declared,
            [target.variant],
            folder=folder,
            where=Where(ray=ray, gpus=indices(gpus)),
            retry_failed=retry_failed,
            on_progress=on_progress,
        )
        page = study_page(result, folder / f"{declared.name}.html")
        track(workdir, lambda tracker: tracker.study(result, folder, page))
    tell_untracked(workdir)
    _tell_study(result, page, limits, as_json=as_json)


def _ceilings(workdir: Path, on_progress: OnProgress) -> Ceilings:
    from workbench.measure.roofline import ceilings

    return ceilings(workdir / "cache", on_progress)


def _tell(measured: Measurement, summary: dict[str, float], *, as_json: bool) -> None:
    import pandas as pd

    start = measured.replica.cold_start
    parts = start.model_dump(exclude_none=True) if start else {}
    found = summary | {f"cold_start/{name}": value for name, value in parts.items()}
    if as_json:
        row = {"name": measured.name, "invalid": "; ".join(measured.invalid), **found}
        show(pd.DataFrame([row]), as_json=True)
    else:
        known = {key: value for key, value in found.items() if value == value}
        show(pd.DataFrame({"metric": list(known), "value": list(known.values())}), as_json=False)
        if not measured.environment.gpu_count:
            typer.echo("no GPU: utilisation, memory, power and energy were not sampled")
        for reason in measured.invalid:
            typer.echo(f"cannot be trusted: {reason}", err=True)
    if measured.invalid:
        leave(1)


def _tell_study(result: StudyResult, page: Path, limits: Ceilings | None, *, as_json: bool) -> None:
    table = result.frame(limits)
    if not as_json and len(table):
        varied = [*result.study.varied, "prompt_tokens", "output_tokens", "batch", "rate_rps"]
        keys = [key for key in varied if table[key].notna().any()]
        values = ["output_tokens_per_s", "ttft_p50_s", "tpot_p50_s"]
        values += [name for name in ("mbu", "mfu", "joules_per_token") if name in table]
        shown = table[table["valid"]].astype(dict.fromkeys(result.study.varied, str))
        table = shown.groupby(["variant", *keys], sort=False)[values].mean().reset_index()
    show(table, as_json=as_json)
    for failure in result.failures:
        typer.echo(f"failed: {failure.name}: {failure.cause}", err=True)
    tell_doubts([f"{m.name}: {why}" for m in result.measurements for why in m.invalid], "left out")
    if not as_json:
        typer.echo(f"figures  {page}")
    if result.failures:
        leave(1)
