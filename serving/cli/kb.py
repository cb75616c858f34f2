"""`serving kb`: fill and ask the knowledge base."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from serving.cli.common import guarded
from serving.errors import InputError

if TYPE_CHECKING:
    from serving.gateway.knowledge import Added, Document, Embedder, Knowledge

T = TypeVar("T")

app = typer.Typer(help="Documents that answers are looked up in.", no_args_is_help=True)

Uri = Annotated[
    str,
    typer.Option(
        envvar="SERVING_KB_URI", help="A path ending in .db (Milvus Lite) or http://host:19530."
    ),
]
Tenant = Annotated[str, typer.Option(help="Whose documents; without it everybody's.")]
Embeddings = Annotated[
    str | None,
    typer.Option(
        help="An OpenAI-compatible server, http://host:port/v1; its key is $EMBEDDINGS_API_KEY.",
        show_default="the model that is installed with this",
    ),
]
EmbeddingModel = Annotated[str | None, typer.Option(help="Its name on that server.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
_HERE = "knowledge.db"


@app.command(
    epilog="Examples: serving kb add handbook.md faq.jsonl · "
    "serving kb add docs/ --tenant acme --uri http://127.0.0.1:19530"
)
@guarded
def add(
    files: Annotated[
        list[Path], typer.Argument(help="Files (txt, md, html, json, jsonl, pdf) or folders.")
    ],
    tenant: Tenant = "",
    uri: Uri = _HERE,
    embeddings: Embeddings = None,
    embedding_model: EmbeddingModel = None,
    as_json: AsJson = False,
) -> None:
    """Put documents in, each in place of what its source had before."""
    from serving.gateway.knowledge import read_documents

    documents = [document for path in files for document in read_documents(path)]
    embedder = _embedder(embeddings, embedding_model)
    added = _with(uri, embedder, lambda knowledge: _add(knowledge, documents, tenant))
    if as_json:
        typer.echo(added.model_dump_json(indent=2))
    else:
        typer.echo(
            f"{added.added} added, {added.replaced} replaced, {added.unchanged} unchanged:"
            f" {added.passages} passages written to {uri}"
        )


@app.command("list", epilog="Example: serving kb list --tenant acme --json")
@guarded
def list_(
    tenant: Annotated[str | None, typer.Option(help="Only of this tenant.")] = None,
    uri: Uri = _HERE,
    as_json: AsJson = False,
) -> None:
    """List the documents."""
    _must_exist(uri)
    found = _with(uri, None, lambda knowledge: knowledge.sources(tenant))
    if as_json:
        typer.echo(json.dumps([source.model_dump() for source in found], indent=2))
        return
    for source in found:
        whose = source.tenant or "(everybody)"
        typer.echo(f"{whose}\t{source.source}\t{source.passages} passages\t{source.title}")
    if not found:
        typer.echo(f"{uri} holds no documents; `serving kb add` puts some in.", err=True)


@app.command(epilog="Example: serving kb remove handbook.md --tenant acme")
@guarded
def remove(
    source: Annotated[str, typer.Argument(help="As `serving kb list` shows it.")],
    tenant: Tenant = "",
    uri: Uri = _HERE,
) -> None:
    """Take a document out."""
    _must_exist(uri)
    if not _with(uri, None, lambda knowledge: knowledge.remove(source, tenant)):
        whose = f"tenant {tenant!r}" if tenant else "everybody"
        raise InputError(f"{uri} has no {source!r} of {whose}", remedy="See serving kb list.")
    typer.echo(f"{source} removed")


@app.command(
    epilog='Example: serving kb search "How many days of leave do I have?" --top-k 5 --json'
)
@guarded
def search(
    question: Annotated[str, typer.Argument(help="In plain words.")],
    tenant: Tenant = "",
    top_k: Annotated[int, typer.Option(min=1, max=50, help="At most so many passages.")] = 3,
    min_score: Annotated[
        float, typer.Option(min=-1, max=1, help="Cosine below which nothing is shown.")
    ] = 0.3,
    uri: Uri = _HERE,
    embeddings: Embeddings = None,
    embedding_model: EmbeddingModel = None,
    as_json: AsJson = False,
) -> None:
    """Show the passages nearest to a question, with their scores."""
    _must_exist(uri)
    embedder = _embedder(embeddings, embedding_model)
    found = _with(
        uri, embedder, lambda knowledge: knowledge.search(question, tenant, top_k, min_score)
    )
    if as_json:
        typer.echo(json.dumps([passage.model_dump() for passage in found], indent=2))
        return
    for number, passage in enumerate(found, 1):
        typer.echo(f"[{number}] {passage.score:.2f}  {passage.title}  ({passage.source})")
        typer.echo("".join(f"    {line}\n" for line in passage.text.splitlines()))
    if not found:
        typer.echo(f"Nothing scores {min_score:g} or more.", err=True)


async def _add(knowledge: Knowledge, documents: list[Document], tenant: str) -> Added:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("Embedding", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        return await knowledge.add(
            documents,
            tenant,
            on_progress=lambda done, of: progress.update(task, completed=done, total=of),
        )


def _embedder(url: str | None, model: str | None) -> Embedder:
    from serving.gateway.knowledge import choose_embedder

    return choose_embedder(
        url,
        model,
        api_key=os.environ.get("EMBEDDINGS_API_KEY"),
        threads=max((os.cpu_count() or 1) // 2, 1),
    )


def _with(uri: str, embedder: Embedder | None, ask: Callable[[Knowledge], Awaitable[T]]) -> T:
    """What a knowledge base answers, opened for this one question."""
    from rich.console import Console

    from serving.gateway.knowledge import Knowledge

    async def run() -> T:
        with Console(stderr=True).status("Opening the knowledge base"):
            knowledge = await Knowledge.open(uri, embedder, time_limit_s=_PATIENCE_S)
        try:
            return await ask(knowledge)
        finally:
            await knowledge.close()

    return asyncio.run(run())


def _must_exist(uri: str) -> None:
    if "://" not in uri and not Path(uri).exists():
        raise InputError(f"{uri} is not there", remedy="`serving kb add` makes it.")


_PATIENCE_S = 30.0
