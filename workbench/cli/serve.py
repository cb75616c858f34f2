"""`workbench serve`: a bundle for real, on this machine."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.common import DEFAULT_WORKDIR, Debug, Workdir, guarded, leave

app = typer.Typer()


@app.command(epilog="Example: workbench serve runs/export/bundle --port 8080")
@guarded
def serve(
    bundle: Annotated[Path, typer.Argument(help="A bundle directory, as `export` writes it.")],
    workdir: Workdir = DEFAULT_WORKDIR,
    replicas: Annotated[
        int | None, typer.Option(help="vLLM servers.", show_default="as many as the GPUs carry")
    ] = None,
    port: Annotated[int, typer.Option(help="Of the gateway.")] = 8080,
    redis: Annotated[
        str | None,
        typer.Option(help="A Redis that runs.", show_default="one is started where installed"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Start vLLM, the gateway, Redis and Prometheus as the bundle says; Ctrl-C ends them."""
    from rich.console import Console

    from workbench.serve import serve as serving

    console = Console(stderr=True)
    folder = workdir / "serve"
    stopped = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopped.set())
    with (
        console.status("checking the bundle") as status,
        serving(
            bundle,
            folder=folder,
            replicas=replicas,
            port=port,
            redis_url=redis,
            on_state=status.update,
        ) as service,
    ):
        status.stop()
        for what, where in service.addresses.items():
            typer.echo(f"{what:<11} {where}")
        typer.echo(f"\nTry it:\n  {service.example}\n\nCtrl-C ends it.")
        while not stopped.wait(1.0):
            if (how := service.ended()) is not None:
                typer.echo(f"workbench: {how}. Its log is under {folder}.", err=True)
                leave_with = 1
                break
        else:
            leave_with = 0
        status.update("ending, streams first")
        status.start()
    leave(leave_with)
