"""Documents become rows of the collection."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

from serving.errors import InputError
from serving.gateway.knowledge.chunks import Chunk
from serving.gateway.knowledge.milvus import owner_of
from serving.gateway.knowledge.passages import Document

ROWS_AT_ONCE = 64
"""That are embedded and written together."""


def check(documents: list[Document], tenant: str) -> None:
    """Refuse what the collection has no room for, or could not tell apart."""
    if len(tenant) > 256:
        raise InputError(f"tenant {tenant[:20]!r}... is too long", remedy="Use 256 characters.")
    sources = set()
    for document in documents:
        if not document.text.strip():
            raise InputError(f"source {document.source!r} has no text", remedy="Leave it out.")
        if document.source in sources:
            raise InputError(f"source {document.source!r} is there twice", remedy="Rename one.")
        sources.add(document.source)


def groups(
    documents: Sequence[tuple[Document, list[Chunk]]],
) -> Iterator[list[tuple[Document, list[Chunk]]]]:
    """Documents in groups of about as many passages as are embedded at once."""
    group: list[tuple[Document, list[Chunk]]] = []
    for document, chunks in documents:
        group.append((document, chunks))
        if sum(len(chunks) for _, chunks in group) >= ROWS_AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def rows_of(
    document: Document, chunks: list[Chunk], tenant: str, held: int
) -> Iterator[dict[str, Any]]:
    """Of a document that had `held` passages before: until it is whole it may have either's."""
    for position, chunk in enumerate(chunks):
        yield {
            "id": row_id(tenant, document.source, position),
            "owner": owner_of(tenant),
            "tenant": tenant,
            "source": document.source,
            "title": chunk.title,
            "digest": "",
            "text": chunk.text,
            "position": position,
            "passages": max(len(chunks), held),
            "embedded": chunk.embedded,
        }


def row_id(tenant: str, source: str, position: int) -> str:
    """The key of a passage; hashed, as sources may hold anything."""
    return f"{sha256(json.dumps([tenant, source]).encode()).hexdigest()[:32]}-{position}"
