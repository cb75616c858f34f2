"""`serving gateway` and `serving keys`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from serving.cli.common import guarded

app = typer.Typer()
keys = typer.Typer(help="API keys.", no_args_is_help=True)
app.add_typer(keys, name="keys")


@app.command(
    epilog="Example: serving gateway --model chat --replica http://127.0.0.1:8000"
    " --replica http://127.0.0.1:8001"
)
@guarded
def gateway(
    config: Annotated[
        Path | None, typer.Option(help="Settings as JSON; the environment (GATEWAY_...) wins.")
    ] = None,
    replica: Annotated[
        list[str] | None,
        typer.Option(help="A vLLM server; dns+http://name:8000 is every address of the name."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name by which clients and replicas know the model.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen at.")] = None,
    redis: Annotated[
        str | None, typer.Option(help="Redis that gateways share, as redis://host:6379/0.")
    ] = None,
    anonymous: Annotated[bool, typer.Option(help="Answer without a key.")] = False,
) -> None:
    """Run the chat gateway until SIGTERM, then drain it."""
    from serving.gateway.server import serve
    from serving.gateway.settings import load

    tracks = {"blue": tuple(replica)} if replica else None
    serve(
        load(
            config,
            tracks=tracks,
            model=model,
            host=host,
            port=port,
            redis_url=redis,
            anonymous=anonymous or None,
        )
    )


@keys.command(epilog="Example: serving keys new shop >> keys.txt")
@guarded
def new(tenant: Annotated[str, typer.Argument(help="Whose key it is.")]) -> None:
    """Make an API key: the key for the client, its digest for the gateway. Neither is kept."""
    from serving.gateway.keys import new_key

    key, digest = new_key()
    typer.echo(f"key for the client: {key}", err=True)
    typer.echo(json.dumps({tenant: [digest]}))
