"""Commands that measure outside the pipeline: one load, a study, a comparison, a capacity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
)
from workbench.cli.loads import (
    Burstiness,
    Concurrency,
    Divisor,
    Duration,
    EngineJson,
    Force,
    LoadSeed,
    OfVariant,
    OutputTokens,
    PromptTokens,
    Rate,
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
    slo_of,
    workload_of,
)
from workbench.cli.runs import tell_untracked

if TYPE_CHECKING:
    from workbench.measure import Measurement
    from workbench.measure.engine import OnProgress
    from workbench.measure.roofline import Ceilings
    from workbench.measure.study import StudyResult
    from workbench.track import Tracker

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
        _track(workdir, lambda tracker: tracker.load(measured, folder / measured.name))
    slo = slo_of(ttft_p99, tpot_p99, e2e_p99)
    found = measured.summary(slo, ceilings=limits, usd_per_hour=usd_per_hour)
    tell_untracked(workdir)
    _tell(measured, found, as_json=as_json)


@app.command(
    epilog="Examples: workbench study experiments/batching-cpu.yaml · "
    "workbench study experiments/batching.yaml --model meta-llama/Llama-3.1-8B --ray auto"
)
@guarded
def study(
    file: Annotated[Path, typer.Argument(help="The study, as YAML or JSON.")],
    workdir: Workdir = DEFAULT_WORKDIR,
    model: Model = None,
    variant: OfVariant = None,
    gpus: Annotated[
        str | None, typer.Option(help="Indices of this host's GPUs.", show_default="all")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster, or auto: spread over its GPUs.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Measure again what failed before.")
    ] = False,
    roofline: Roofline = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure the grid of a study, each point once; the same command goes on after a crash."""
    from workbench.measure.spread import Where
    from workbench.measure.study import Study, run_study
    from workbench.report.study_figures import study_page

    declared = Study.load(file)
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
            where=Where(ray=ray, gpus=_indices(gpus)),
            retry_failed=retry_failed,
            on_progress=on_progress,
        )
        page = study_page(result, folder / f"{declared.name}.html")
        _track(workdir, lambda tracker: tracker.study(result, folder, page))
    tell_untracked(workdir)
    _tell_study(result, page, limits, as_json=as_json)


@app.command(
    epilog="Examples: workbench compare --b-engine '{\"max_num_batched_tokens\": 512}' --rate 4 · "
    "workbench compare --variant baseline --b-variant int8-w8a8 --concurrency 8 · "
    "workbench compare --url http://BLUE:8000 --b-url http://GREEN:8000 --rate 10"
)
@guarded
def compare(
    workdir: Workdir = DEFAULT_WORKDIR,
    url: Url = None,
    b_url: Annotated[str | None, typer.Option(help="Another server, for b.")] = None,
    model: Model = None,
    b_model: Annotated[str | None, typer.Option(help="Another model, for b.")] = None,
    variant: OfVariant = None,
    b_variant: Annotated[str | None, typer.Option(help="Another variant, for b.")] = None,
    engine: EngineJson = None,
    b_engine: Annotated[
        str | None, typer.Option(help="vLLM arguments that b has changed, as JSON.")
    ] = None,
    rate: Rate = None,
    burstiness: Burstiness = None,
    concurrency: Concurrency = None,
    requests: Requests = None,
    trace: TracePath = None,
    window: Window = None,
    speedup: Speedup = 1.0,
    length_divisor: Divisor = 1.0,
    prompt_tokens: PromptTokens = None,
    output_tokens: OutputTokens = None,
    shared_prefix: SharedPrefixes = None,
    duration_s: Duration = 20.0,
    warmup_s: Warmup = 2.0,
    seed: LoadSeed = 0,
    narrow: Annotated[
        float, typer.Option(help="Stop when half of every interval is within this share.")
    ] = 0.05,
    max_repeats: Annotated[int, typer.Option(help="Of each side, at most.")] = 20,
    in_turns: Annotated[
        bool, typer.Option("--in-turns", help="Only one engine at a time, where both do not fit.")
    ] = False,
    force: Force = False,
    name: Annotated[
        str | None, typer.Option(help="Folder of the result below comparisons/.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Is b faster than a? Same prompts and arrivals in turn, until the ratio is known well."""
    from workbench.measure.compare import Arm
    from workbench.measure.compare import compare as compare_arms
    from workbench.measure.points import load_name

    if b_url is b_model is b_variant is b_engine is None:
        raise InputError(
            "b is not said", remedy="Give --b-engine, --b-variant, --b-model or --b-url."
        )
    a = Target.of(workdir, url=url, model=model, variant=variant, engine=engine)
    b = Target.of(
        workdir,
        url=b_url or url,
        model=b_model or (model if b_variant is None else None),
        variant=b_variant or (variant if b_model is None else None),
        engine=b_engine,
        like=a.engine_args,
    )
    workload = workload_of(
        rate=rate,
        burstiness=burstiness,
        concurrency=concurrency,
        requests=requests,
        trace=trace,
        window=window,
        speedup=speedup,
        length_divisor=length_divisor,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        shared_prefix=shared_prefix,
        duration_s=duration_s,
        warmup_s=warmup_s,
        seed=seed,
    )
    same = a.variant.name == b.variant.name
    names = ("a", "b") if same else (a.variant.name, b.variant.name)
    arms = [
        Arm(arm, target.variant, target.engine_args, target.start)
        for arm, target in zip(names, (a, b), strict=True)
    ]
    folder = (
        workdir / "comparisons" / (name or f"{names[1]}-against-{names[0]}-{load_name(workload)}")
    )
    with display(workdir, f"Compare {names[1]} with {names[0]}", as_json=as_json) as on_progress:
        found = compare_arms(
            arms[0],
            arms[1],
            workload,
            folder=folder,
            narrow=narrow,
            max_repeats=max_repeats,
            together=not in_turns,
            force=force,
            on_progress=on_progress,
        )
        _track(workdir, lambda tracker: tracker.comparison(folder))
    tell_untracked(workdir)
    show(found.rows, as_json=as_json)
    if not found.narrow_enough:
        typer.echo(f"not as narrow as {narrow:.0%} after {max_repeats} repeats", err=True)
    _tell_doubts(found.doubts)


@app.command(
    epilog="Examples: workbench capacity --ttft-p99 0.5 --prompt-tokens 16-128 · "
    "workbench capacity --url http://HOST:8000 --ttft-p99 1 --tpot-p99 0.05 --start-rps 8"
)
@guarded
def capacity(
    workdir: Workdir = DEFAULT_WORKDIR,
    url: Url = None,
    served_name: ServedName = None,
    model: Model = None,
    variant: OfVariant = None,
    engine: EngineJson = None,
    ttft_p99: Ttft = None,
    tpot_p99: Tpot = None,
    e2e_p99: E2e = None,
    attainment: Annotated[
        float, typer.Option(help="Share of the requests that must meet every limit.")
    ] = 0.99,
    start_rps: Annotated[float, typer.Option(help="Where to begin, requests a second.")] = 1.0,
    precision: Annotated[
        float, typer.Option(help="Stop when the rate is known to this share.")
    ] = 0.05,
    max_runs: Annotated[int, typer.Option(help="At most so many runs.")] = 60,
    burstiness: Burstiness = None,
    prompt_tokens: PromptTokens = None,
    output_tokens: OutputTokens = None,
    shared_prefix: SharedPrefixes = None,
    duration_s: Duration = 30.0,
    warmup_s: Warmup = 3.0,
    seed: LoadSeed = 0,
    force: Force = False,
    name: Annotated[str | None, typer.Option(help="Folder of the result below capacity/.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """The highest rate at which the SLO is kept, by bisection with confidence."""
    from serving.plan import Slo
    from workbench.measure.capacity import capacity as find_capacity
    from workbench.measure.points import start_server

    target = Target.of(
        workdir, url=url, served_name=served_name, model=model, variant=variant, engine=engine
    )
    workload = workload_of(
        burstiness=burstiness,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        shared_prefix=shared_prefix,
        duration_s=duration_s,
        warmup_s=warmup_s,
        seed=seed,
    )
    folder = workdir / "capacity" / (name or target.variant.name)
    with display(workdir, f"Capacity of {url or target.variant.name}", as_json=as_json) as said:
        found = find_capacity(
            target.variant,
            workload,
            slo_of(ttft_p99, tpot_p99, e2e_p99) or Slo(),
            engine_args=target.engine_args,
            folder=folder,
            start_rps=start_rps,
            precision=precision,
            attainment=attainment,
            max_runs=max_runs,
            force=force,
            start=target.start or start_server,
            on_progress=said,
        )
        _track(workdir, lambda tracker: tracker.capacity(folder))
    tell_untracked(workdir)
    if as_json:
        typer.echo(found.text().rstrip())
    else:
        show(found.runs, as_json=False)
        typer.echo(str(found))
    _tell_doubts(found.doubts)


def _track(workdir: Path, log: Callable[[Tracker], object]) -> None:
    """Leave a trail; a store that fails costs one line."""
    from workbench.track import Tracker, attempt

    with attempt(workdir):
        log(Tracker(workdir))


def _indices(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"--gpus(={text!r}) is not a list of indices", remedy="Write 0,1."
        ) from None


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
    _tell_doubts([f"{m.name}: {why}" for m in result.measurements for why in m.invalid], "left out")
    if not as_json:
        typer.echo(f"figures  {page}")
    if result.failures:
        leave(1)


def _tell_doubts(doubts: Any, how: str = "used although") -> None:
    for doubt in doubts:
        typer.echo(f"{how}: {doubt}", err=True)
