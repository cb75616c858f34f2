"""`serving rollout`: what an operator does with a new track. It talks to the store, not to gateways."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from serving.cli.common import guarded
from serving.errors import InputError

if TYPE_CHECKING:
    from serving.gateway.analysis import Analysis
    from serving.gateway.rollout import RolloutState, Status, Store

T = TypeVar("T")
app = typer.Typer(
    help="Send a share of the conversations to a new track, or all, and take them back.",
    no_args_is_help=True,
)

RedisUrl = Annotated[
    str | None,
    typer.Option("--redis", envvar="GATEWAY_REDIS_URL", help="Redis that the gateways share."),
]
StateFile = Annotated[
    Path | None,
    typer.Option("--state", envvar="GATEWAY_STATE_FILE", help="State file, where no Redis is."),
]
TrackName = Annotated[str, typer.Argument(metavar="TRACK", help="A track of the gateway.")]
Force = Annotated[bool, typer.Option("--force", help="Whatever speaks against it.")]
MinReplicas = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Healthy replicas that it needs.",
        show_default="as many as the stable track has",
    ),
]
AutoPromote = Annotated[
    bool, typer.Option("--auto-promote", help="Promote what has passed without being told to.")
]
LookS = Annotated[float, typer.Option(help="Between two looks, in seconds.")]
WindowS = Annotated[float, typer.Option(help="The least time of each step, in seconds.")]
MaxWindows = Annotated[
    int, typer.Option(help="Windows after which a step without enough requests is rolled back.")
]
MinRequests = Annotated[int, typer.Option(help="Of each track in a step, before it may pass.")]
MaxErrorIncrease = Annotated[
    float, typer.Option(help="Share of failed requests above the stable track's that is allowed.")
]
MaxSlowdown = Annotated[
    float, typer.Option(help="Mean latency over the stable track's that is allowed.")
]
Latency = Annotated[str, typer.Option(help="Which latency is compared: ttft, tpot or e2e.")]
Confidence = Annotated[float, typer.Option(help="That a sound version is not rolled back.")]


@app.command(
    epilog="Examples: serving rollout status --redis redis://127.0.0.1:6379/0 · "
    "serving rollout status --json · serving rollout status --watch"
)
@guarded
def status(
    ctx: typer.Context,
    redis: RedisUrl = None,
    state: StateFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again every two seconds.")] = False,
) -> None:
    """Show which track takes which share, and what each has shown in this step."""
    from rich.console import Console
    from rich.live import Live

    from serving.cli.rollout_table import shown

    if watch and as_json:
        raise InputError("--watch shows no JSON", remedy="Use one of --watch and --json.")
    if not watch:
        found = _in_store(ctx, redis, state, _status)
        if as_json:
            typer.echo(found.model_dump_json(indent=2))
        else:
            # A pipe has no width, and would get 80 columns.
            Console(width=None if sys.stdout.isatty() else 160).print(shown(found))
        return
    try:
        first = _in_store(ctx, redis, state, _status)
        with Live(shown(first), auto_refresh=False) as live:
            while True:
                time.sleep(2)
                live.update(shown(_in_store(ctx, redis, state, _status)), refresh=True)
    except KeyboardInterrupt:
        pass


@app.command(
    epilog="Examples: serving rollout start green · serving rollout start green --share 0.01 "
    "--steps 0.1,0.5 --latency ttft --min-requests 300 --auto-promote"
)
@guarded
def start(
    ctx: typer.Context,
    track: TrackName,
    share: Annotated[float, typer.Option(help="The first share of the conversations.")] = 0.01,
    steps: Annotated[
        str | None,
        typer.Option(
            help="The shares after it, comma-separated; '' for none.",
            show_default="0.1,0.5, as far as they are larger",
        ),
    ] = None,
    window_s: WindowS = 300.0,
    look_s: LookS = 60.0,
    max_windows: MaxWindows = 4,
    min_requests: MinRequests = 300,
    max_error_increase: MaxErrorIncrease = 0.005,
    max_slowdown: MaxSlowdown = 1.2,
    latency: Latency = "tpot",
    confidence: Confidence = 0.95,
    auto_promote: AutoPromote = False,
    redis: RedisUrl = None,
    state: StateFile = None,
) -> None:
    """Begin a canary: the gateways raise its share while it is sound, and take it back if not."""
    from serving.gateway.rollout import operate

    usual = tuple(step for step in (0.1, 0.5) if step > share)
    shares = (share, *(usual if steps is None else _numbers("--steps", steps)))
    rule = _rule(
        window_s=window_s,
        look_s=look_s,
        max_windows=max_windows,
        min_requests=min_requests,
        max_error_increase=max_error_increase,
        max_slowdown=max_slowdown,
        latency=latency,
        confidence=confidence,
    )

    async def begin(store: Store) -> tuple[RolloutState, tuple[str, ...]]:
        after = await operate.start(
            store, track, shares=shares, rule=rule, auto_promote=auto_promote
        )
        return after, await operate.warnings(store, after)

    after, warnings = _in_store(ctx, redis, state, begin)
    for warning in warnings:
        typer.echo(f"warning: {warning}, or it looks slow for its load", err=True)
    _say(after)


@app.command(
    epilog="Examples: serving rollout switch green · serving rollout switch green --watch "
    "--window-s 120 --look-s 30 · serving rollout switch green --min-replicas 1"
)
@guarded
def switch(
    ctx: typer.Context,
    track: TrackName,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Compare it with what the old one showed, and go back if worse."
        ),
    ] = False,
    window_s: WindowS = 300.0,
    look_s: LookS = 60.0,
    min_requests: MinRequests = 300,
    latency: Latency = "tpot",
    auto_promote: AutoPromote = False,
    min_replicas: MinReplicas = None,
    redis: RedisUrl = None,
    state: StateFile = None,
) -> None:
    """Send all traffic to a track at once; the old one is kept, and `rollback` returns to it."""
    from serving.gateway.rollout import operate

    rule = None
    if watch:
        rule = _rule(window_s=window_s, look_s=look_s, min_requests=min_requests, latency=latency)
    elif auto_promote:
        raise InputError(
            "--auto-promote promotes what has passed", remedy="Add --watch, or promote by hand."
        )
    _say(
        _in_store(
            ctx,
            redis,
            state,
            lambda store: operate.switch(
                store, track, rule=rule, auto_promote=auto_promote, min_replicas=min_replicas
            ),
        )
    )


@app.command(
    epilog="Examples: serving rollout promote · serving rollout promote --force --min-replicas 1"
)
@guarded
def promote(
    ctx: typer.Context,
    force: Force = False,
    min_replicas: MinReplicas = None,
    redis: RedisUrl = None,
    state: StateFile = None,
) -> None:
    """Make the candidate the stable track."""
    from serving.gateway.rollout import operate

    _say(
        _in_store(
            ctx,
            redis,
            state,
            lambda store: operate.promote(store, force=force, min_replicas=min_replicas),
        )
    )


@app.command(
    epilog='Examples: serving rollout rollback · serving rollout rollback --reason "wrong prices"'
)
@guarded
def rollback(
    ctx: typer.Context,
    reason: Annotated[str, typer.Option(help="Kept in the state.")] = "by the operator",
    force: Force = False,
    redis: RedisUrl = None,
    state: StateFile = None,
) -> None:
    """Send everything back to the stable track at once, or after a promotion to the one before."""
    from serving.gateway.rollout import operate

    _say(_in_store(ctx, redis, state, lambda store: operate.roll_back(store, reason, force=force)))


# -- what they share ------------------------------------------------------------------------------


def _in_store(
    ctx: typer.Context,
    redis: str | None,
    state: Path | None,
    work: Callable[[Store], Awaitable[T]],
) -> T:
    """Do a piece of work with the store. What is typed wins over the environment."""
    from serving.gateway.rollout import open_store

    sources = [ctx.get_parameter_source(name) for name in ("redis", "state")]
    typed = [source is not None and source.name == "COMMANDLINE" for source in sources]
    if all(typed):
        raise InputError("--redis and --state are two stores", remedy="Use one of them.")
    store = open_store(None if typed[1] else redis, state)

    async def run() -> T:
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


async def _status(store: Store) -> Status:
    from serving.gateway.rollout import status_of

    state = await store.load()
    if state is None:
        raise InputError(
            f"no gateway has written a state to {store.name} yet", remedy="Start the gateway."
        )
    return await status_of(store, state)


def _rule(**fields: object) -> Analysis:
    from serving.gateway.analysis import Analysis

    return Analysis.model_validate(fields)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(
            f"{option}(={text!r}) is not a list of numbers", remedy="Write for example 0.1,0.5."
        ) from None


def _say(state: RolloutState) -> None:
    from serving.cli.rollout_table import head

    typer.echo(head(state))
