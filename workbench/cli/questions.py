"""Commands that measure until a question is answered: is b faster than a, and how much can it take?"""

from __future__ import annotations

from typing import Annotated

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
    show,
    tell_doubts,
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
from workbench.cli.runs import tell_untracked, track

app = typer.Typer()


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
        track(workdir, lambda tracker: tracker.comparison(folder))
    tell_untracked(workdir)
    show(found.rows, as_json=as_json)
    if not found.narrow_enough:
        typer.echo(f"not as narrow as {narrow:.0%} after {max_repeats} repeats", err=True)
    tell_doubts(found.doubts)


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
        track(workdir, lambda tracker: tracker.capacity(folder))
    tell_untracked(workdir)
    if as_json:
        typer.echo(found.text().rstrip())
    else:
        show(found.runs, as_json=False)
        typer.echo(str(found))
    tell_doubts(found.doubts)
