"""Options that describe a load, a model and an engine, and the values that they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.errors import InputError
from workbench.cli.variants import names_in, variant_in

if TYPE_CHECKING:
    from serving.plan import EngineArgs, Slo, Variant
    from simulations.traffic import Workload
    from workbench.measure.points import StartEngine
    from workbench.measure.vllm_attached import AttachedEngine

_LENGTHS = "64, 16-128 (uniform), or MEDIAN:MEAN:MAX (log-normal)."

Url = Annotated[
    str | None, typer.Option(help="A server that runs; else vLLM is started with --model.")
]
ServedName = Annotated[
    str | None, typer.Option(help="Name of the model at --url.", show_default="its first")
]
OfVariant = Annotated[
    str | None,
    typer.Option("--variant", help="One that `compress` made.", autocompletion=names_in),
]
EngineJson = Annotated[
    str | None,
    typer.Option("--engine", help='vLLM arguments as JSON, for example {"max_num_seqs": 8}.'),
]
Rate = Annotated[float | None, typer.Option(help="Requests a second.", show_default="4")]
Burstiness = Annotated[
    float | None, typer.Option(help="Of gamma gaps: 1 is Poisson, below is burstier.")
]
Concurrency = Annotated[int | None, typer.Option(help="A closed loop of so many users.")]
Requests = Annotated[int | None, typer.Option(help="Of a closed loop, in all.")]
TracePath = Annotated[
    Path | None, typer.Option(help="Replay: Azure, BurstGPT, Mooncake, ... or parquet.")
]
Window = Annotated[str | None, typer.Option(help="START:LENGTH of the trace, seconds.")]
Speedup = Annotated[float, typer.Option(help="Of the trace: 2 plays it twice as fast.")]
Divisor = Annotated[float, typer.Option(help="Divide the trace's lengths.")]
PromptTokens = Annotated[
    str | None, typer.Option("--prompt-tokens", help=_LENGTHS, show_default="64")
]
OutputTokens = Annotated[
    str | None, typer.Option("--output-tokens", help=_LENGTHS, show_default="64")
]
SharedPrefixes = Annotated[
    str | None, typer.Option(help="TOKENS:GROUPS put before the prompts, for example 256:4.")
]
Duration = Annotated[
    float, typer.Option(help="Length of the load in seconds; of a trace see --window.")
]
Warmup = Annotated[float, typer.Option(help="Requests of the first seconds are not counted.")]
LoadSeed = Annotated[int, typer.Option(help="Seed of arrivals, lengths and prompts.")]
Roofline = Annotated[
    bool,
    typer.Option(
        "--roofline", help="Measure what the device can do, once, and add MBU, MFU and FLOP/s."
    ),
]
RayAddress = Annotated[
    str | None, typer.Option(help="Address of a Ray cluster, or auto: spread over its GPUs.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Use runs that cannot be trusted, and say so.")
]


@dataclass(frozen=True)
class Target:
    """What gets the load: a variant on an engine to start, or a server that runs."""

    variant: Variant
    engine_args: EngineArgs
    url: str | None = None
    served_name: str = ""

    @classmethod
    def of(
        cls,
        workdir: Path,
        *,
        url: str | None = None,
        served_name: str | None = None,
        model: str | None = None,
        variant: str | None = None,
        engine: str | None = None,
        like: EngineArgs | None = None,
    ) -> Target:
        """What the options say.

        Args:    like: engine arguments that `engine` changes; None is those for this machine.
        Raises:  InputError: options that exclude each other, or a variant that is not there.
        """
        chosen, engine_args = _variant(workdir, model, variant), _engine(engine, like)
        if url is None:
            return cls(chosen, engine_args)
        if engine is not None:
            raise InputError(
                f"--engine(={engine!r}) cannot change the server at --url(={url!r})",
                remedy="Leave out one of them.",
            )
        from workbench.measure.vllm_attached import first_model

        first, context = first_model(url)
        if context is not None:
            engine_args = engine_args.model_copy(update={"max_model_len": context})
        return cls(chosen, engine_args, url, served_name or first)

    def attached(self) -> AttachedEngine | None:
        """The engine of a server that runs; None where one is to be started."""
        from workbench.measure.vllm_attached import AttachedEngine

        return AttachedEngine(self.url, self.served_name) if self.url else None

    @property
    def start(self) -> StartEngine | None:
        """How to get at an engine; None is the usual way."""
        engine = self.attached()
        return None if engine is None else lambda variant, engine_args, folder: engine


def _variant(workdir: Path, model: str | None, variant: str | None) -> Variant:
    from serving.plan import Variant
    from workbench.settings import Settings

    if variant is None:
        return Variant(name="model", model=Settings(model=model).model_path())
    if model is not None:
        raise InputError(
            f"--variant(={variant!r}) and --model(={model!r}) exclude each other",
            remedy="Leave out one of them.",
        )
    return variant_in(workdir, variant)


def _engine(text: str | None, like: EngineArgs | None) -> EngineArgs:
    from serving.plan import EngineArgs
    from workbench.settings import engine_for_this_machine

    try:
        chosen = json.loads(text or "{}")
    except ValueError as error:
        raise InputError(
            f"--engine(={text!r}) is not JSON ({error})", remedy='Write {"max_num_seqs": 8}.'
        ) from None
    base = like or engine_for_this_machine()
    return EngineArgs.model_validate(base.model_dump() | chosen)


def lengths_of(option: str, text: str | None) -> Any:
    """The law of lengths that an option gives."""
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


def slo_of(ttft_p99: float | None, tpot_p99: float | None, e2e_p99: float | None) -> Slo | None:
    """The limits that were given; None without any."""
    from serving.plan import Slo

    if ttft_p99 is None and tpot_p99 is None and e2e_p99 is None:
        return None
    return Slo(ttft_p99_s=ttft_p99, tpot_p99_s=tpot_p99, e2e_p99_s=e2e_p99)


def workload_of(
    *,
    rate: float | None = None,
    burstiness: float | None = None,
    to_rate: float | None = None,
    concurrency: int | None = None,
    requests: int | None = None,
    trace: Path | None = None,
    window: str | None = None,
    speedup: float = 1.0,
    spread_ticks: bool = False,
    length_divisor: float = 1.0,
    prompt_tokens: str | None = None,
    output_tokens: str | None = None,
    shared_prefix: str | None = None,
    turns: int = 1,
    think_s: float = 1.0,
    duration_s: float = 30.0,
    warmup_s: float = 3.0,
    seed: int = 0,
) -> Workload:
    """The load that the options describe.

    Raises:  InputError: options that exclude each other, or a value that cannot be read.
    """
    from simulations.traffic import ClosedLoop, Workload

    options: dict[str, Any] = {"warmup_s": warmup_s, "seed": seed}
    options |= _reuse(shared_prefix, turns, think_s)
    texts = {"prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
    given = {
        name: lengths_of(f"--{name.replace('_', '-')}", text)
        for name, text in texts.items()
        if text is not None or trace is None
    }
    if trace is not None:
        _exclude("--trace", trace, {"--rate": rate, "--concurrency": concurrency})
        replay = _replay(trace, window, speedup, spread_ticks, length_divisor)
        return Workload.of_trace(replay, **options, **given)
    arrivals = _arrivals(rate, burstiness, to_rate, concurrency, requests)
    if isinstance(arrivals, ClosedLoop):
        options["warmup_s"] = 0.0
    return Workload(arrivals=arrivals, duration_s=duration_s, **options, **given)


def _arrivals(
    rate: float | None,
    burstiness: float | None,
    to_rate: float | None,
    concurrency: int | None,
    requests: int | None,
) -> Any:
    from simulations.traffic import ClosedLoop, Gamma, Poisson, Ramp

    if concurrency is not None:
        _exclude("--concurrency", concurrency, {"--rate": rate, "--to-rate": to_rate})
        return ClosedLoop(concurrency=concurrency, requests=requests or 8 * concurrency)
    at_rps = 4.0 if rate is None else rate
    if to_rate is not None:
        return Ramp(start_rps=at_rps, end_rps=to_rate, burstiness=burstiness or 1.0)
    if burstiness is not None:
        return Gamma(rate_rps=at_rps, burstiness=burstiness)
    return Poisson(rate_rps=at_rps)


def _exclude(option: str, value: object, others: dict[str, object]) -> None:
    for other, text in others.items():
        if text is not None:
            raise InputError(
                f"{option}(={str(value)!r}) and {other}(={text}) exclude each other",
                remedy="Leave out one of them.",
            )


def _replay(
    trace: Path, window: str | None, speedup: float, spread_ticks: bool, length_divisor: float
) -> Any:
    from simulations.traffic import Replay

    chosen: dict[str, Any] = {}
    if window is not None:
        start_s, length_s = _pair("--window", window, "START:LENGTH", "600:60", float)
        chosen = {"start_s": start_s, "length_s": length_s}
    return Replay.of(
        trace,
        speedup=speedup,
        spread_ticks=spread_ticks,
        length_divisor=length_divisor,
        **chosen,
    )


def _reuse(shared_prefix: str | None, turns: int, think_s: float) -> dict[str, Any]:
    from simulations.traffic import Fixed, Sessions, SharedPrefix

    found: dict[str, Any] = {}
    if shared_prefix is not None:
        tokens, groups = _pair("--shared-prefix", shared_prefix, "TOKENS:GROUPS", "256:4", int)
        found["shared_prefix"] = SharedPrefix(tokens=Fixed(tokens=tokens), groups=groups)
    if turns > 1:
        found["sessions"] = Sessions(turns=Fixed(tokens=turns), think_s=think_s)
    return found


def _pair(option: str, text: str, form: str, example: str, of: Callable[[str], Any]) -> list[Any]:
    try:
        first, second = map(of, text.split(":"))
    except ValueError:
        raise InputError(
            f"{option}(={text!r}) is not {form}", remedy=f"Write for example {example}."
        ) from None
    return [first, second]


def indices(text: str | None) -> tuple[int, ...] | None:
    """What `--gpus` names; None is all of them."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"--gpus(={text!r}) is not a list of indices", remedy="Write 0,1."
        ) from None
