"""Commands that measure outside the pipeline: one load, a study, a comparison, a capacity."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from serving.plan import EngineArgs, Slo, Variant
    from simulations.traffic import Workload

app = typer.Typer()

_LENGTHS = "64, 16-128 (uniform), or MEDIAN:MEAN:MAX (log-normal)."
Rate = Annotated[float | None, typer.Option(help="Requests a second.", show_default="4")]
Prompt = Annotated[str | None, typer.Option("--prompt-tokens", help=_LENGTHS, show_default="64")]
Output = Annotated[str | None, typer.Option("--output-tokens", help=_LENGTHS, show_default="64")]
Duration = Annotated[float, typer.Option(help="Length of the load in seconds.")]
Warmup = Annotated[float, typer.Option(help="Requests of the first seconds are not counted.")]
AnySeed = Annotated[int, typer.Option(help="Seed of arrivals, lengths and prompts.")]
Engine = Annotated[
    str | None, typer.Option(help='vLLM arguments as JSON, for example {"max_num_seqs": 8}.')
]
Usd = Annotated[float | None, typer.Option(help="Price of a GPU hour: adds $ per million tokens.")]
Force = Annotated[
    bool, typer.Option("--force", help="Use runs that cannot be trusted, and say so.")
]


def _lengths(option: str, text: str | None) -> Any:
    from simulations.traffic import Fixed, LogNormal, Uniform

    parts = (text or "64").replace("-", " - ").replace(":", " : ").split()
    try:
        match parts:
            case [tokens]:
                return Fixed(tokens=int(tokens))
            case [low, "-", high]:
                return Uniform(min_tokens=int(low), max_tokens=int(high))
            case [median, ":", mean, ":", most]:
                return LogNormal(
                    median_tokens=float(median), mean_tokens=float(mean), max_tokens=int(most)
                )
    except ValueError as error:
        said = str(error).splitlines()[0] if "invalid literal" not in str(error) else ""
        raise InputError(
            f"{option}(={text!r}) {said}".rstrip(), remedy=f"Write {_LENGTHS}"
        ) from None
    raise InputError(f"{option}(={text!r}) is not a length", remedy=f"Write {_LENGTHS}")


def _engine(text: str | None) -> EngineArgs:
    import json

    from serving.plan import EngineArgs
    from workbench.settings import engine_for_this_machine

    try:
        chosen = json.loads(text or "{}")
    except ValueError as error:
        raise InputError(
            f"--engine(={text!r}) is not JSON ({error})", remedy='Write {"max_num_seqs": 8}.'
        ) from None
    return EngineArgs.model_validate(engine_for_this_machine().model_dump() | chosen)


def _variant(model: str | None, name: str = "model") -> Variant:
    from serving.plan import Variant
    from workbench.settings import Settings

    return Variant(name=name, model=Settings(model=model).model_path())


def _slo(ttft_p99: float | None, tpot_p99: float | None, e2e_p99: float | None) -> Slo | None:
    from serving.plan import Slo

    if ttft_p99 is None and tpot_p99 is None and e2e_p99 is None:
        return None
    return Slo(ttft_p99_s=ttft_p99, tpot_p99_s=tpot_p99, e2e_p99_s=e2e_p99)


def _arrivals(
    rate: float | None,
    burstiness: float | None,
    to_rate: float | None,
    concurrency: int | None,
    requests: int | None,
) -> Any:
    from simulations.traffic import ClosedLoop, Gamma, Poisson, Ramp

    if concurrency is not None:
        if rate is not None or to_rate is not None:
            raise InputError(
                f"--concurrency(={concurrency}) is a closed loop, which has no rate",
                remedy="Leave out --rate, or --concurrency.",
            )
        return ClosedLoop(concurrency=concurrency, requests=requests or 8 * concurrency)
    at_rps = 4.0 if rate is None else rate
    if to_rate is not None:
        return Ramp(start_rps=at_rps, end_rps=to_rate, burstiness=burstiness or 1.0)
    if burstiness is not None:
        return Gamma(rate_rps=at_rps, burstiness=burstiness)
    return Poisson(rate_rps=at_rps)


def _replay(
    trace: Path,
    window: str | None,
    speedup: float,
    spread_ticks: bool,
    length_divisor: float,
    **options: Any,
) -> Workload:
    from simulations.traffic import Replay, Workload

    chosen: dict[str, Any] = {}
    if window is not None:
        try:
            start_s, length_s = map(float, window.split(":"))
        except ValueError:
            raise InputError(
                f"--window(={window!r}) is not START:LENGTH", remedy="Write for example 600:60."
            ) from None
        chosen = {"start_s": start_s, "length_s": length_s}
    replay = Replay.of(
        trace,
        speedup=speedup,
        spread_ticks=spread_ticks,
        length_divisor=length_divisor,
        **chosen,
    )
    return Workload.of_trace(replay, **options)


@app.command(
    epilog="Examples: workbench load --rate 8 --ttft-p99 0.5 · "
    "workbench load --url http://HOST:8000 --served-name my-model --rate 20 · "
    "workbench load --trace azure.csv --window 0:120 --speedup 2"
)
@guarded
def load(
    workdir: Workdir = DEFAULT_WORKDIR,
    url: Annotated[
        str | None, typer.Option(help="A server that runs; else vLLM is started with --model.")
    ] = None,
    served_name: Annotated[
        str | None, typer.Option(help="Name of the model at --url.", show_default="its first")
    ] = None,
    model: Model = None,
    engine: Engine = None,
    rate: Rate = None,
    burstiness: Annotated[
        float | None, typer.Option(help="Of gamma gaps: 1 is Poisson, below is burstier.")
    ] = None,
    to_rate: Annotated[float | None, typer.Option(help="Ramp from --rate to this.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="A closed loop of so many users.")] = None,
    requests: Annotated[int | None, typer.Option(help="Of a closed loop, in all.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Replay: Azure, BurstGPT, Mooncake, ... or parquet.")
    ] = None,
    window: Annotated[str | None, typer.Option(help="START:LENGTH of the trace, seconds.")] = None,
    speedup: Annotated[float, typer.Option(help="Of the trace: 2 plays it twice as fast.")] = 1.0,
    spread_ticks: Annotated[
        bool, typer.Option("--spread-ticks", help="Spread equal time stamps over their tick.")
    ] = False,
    length_divisor: Annotated[float, typer.Option(help="Divide the trace's lengths.")] = 1.0,
    prompt_tokens: Prompt = None,
    output_tokens: Output = None,
    shared_prefix: Annotated[
        str | None, typer.Option(help="TOKENS:GROUPS put before the prompts, for example 256:4.")
    ] = None,
    turns: Annotated[int, typer.Option(help="Turns of each conversation.")] = 1,
    think_s: Annotated[float, typer.Option(help="Mean pause between turns, seconds.")] = 1.0,
    duration_s: Duration = 30.0,
    warmup_s: Warmup = 3.0,
    seed: AnySeed = 0,
    ttft_p99: Ttft = None,
    tpot_p99: Tpot = None,
    e2e_p99: E2e = None,
    usd_per_hour: Usd = None,
    name: Annotated[str | None, typer.Option(help="Folder of the result below loads/.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Send one load to a server, or to vLLM started for it, and measure what comes back."""
    from simulations.traffic import ClosedLoop, Workload

    options: dict[str, Any] = {"warmup_s": warmup_s, "seed": seed}
    options |= _reuse(shared_prefix, turns, think_s)
    if trace is not None:
        for flag, tokens in (("prompt_tokens", prompt_tokens), ("output_tokens", output_tokens)):
            if tokens is not None:
                options[flag] = _lengths(f"--{flag.replace('_', '-')}", tokens)
        workload = _replay(trace, window, speedup, spread_ticks, length_divisor, **options)
    else:
        arrivals = _arrivals(rate, burstiness, to_rate, concurrency, requests)
        if isinstance(arrivals, ClosedLoop):
            options["warmup_s"] = 0.0
        workload = Workload(
            arrivals=arrivals,
            prompt_tokens=_lengths("--prompt-tokens", prompt_tokens),
            output_tokens=_lengths("--output-tokens", output_tokens),
            duration_s=duration_s,
            **options,
        )
    measured = _load(
        workdir, url, served_name, _variant(model), _engine(engine), workload, name, as_json
    )
    _tell(measured, _slo(ttft_p99, tpot_p99, e2e_p99), usd_per_hour, as_json=as_json)


def _reuse(shared_prefix: str | None, turns: int, think_s: float) -> dict[str, Any]:
    from simulations.traffic import Fixed, Sessions, SharedPrefix

    found: dict[str, Any] = {}
    if shared_prefix is not None:
        try:
            tokens, groups = map(int, shared_prefix.split(":"))
        except ValueError:
            raise InputError(
                f"--shared-prefix(={shared_prefix!r}) is not TOKENS:GROUPS", remedy="Write 256:4."
            ) from None
        found["shared_prefix"] = SharedPrefix(tokens=Fixed(tokens=tokens), groups=groups)
    if turns > 1:
        found["sessions"] = Sessions(turns=Fixed(tokens=turns), think_s=think_s)
    return found


def _load(
    workdir: Path,
    url: str | None,
    served_name: str | None,
    variant: Variant,
    engine_args: EngineArgs,
    workload: Workload,
    name: str | None,
    as_json: bool,
) -> Any:
    from contextlib import nullcontext

    from workbench.measure import measure
    from workbench.measure.vllm_attached import AttachedEngine, first_model

    attached = None
    if url is not None:
        first, context = first_model(url)
        attached = AttachedEngine(url, served_name or first)
        if context is not None:
            engine_args = engine_args.model_copy(update={"max_model_len": context})
    with (
        display(workdir, f"Load on {url or variant.model}", as_json=as_json) as on_progress,
        attached or nullcontext() as running,
    ):
        return measure(
            variant,
            workload,
            engine_args=engine_args,
            folder=workdir / "loads",
            engine=running,
            name=name,
            on_progress=on_progress,
        )


def _tell(measured: Any, slo: Slo | None, usd_per_hour: float | None, *, as_json: bool) -> None:
    import pandas as pd

    found = measured.summary(slo, usd_per_hour=usd_per_hour)
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
