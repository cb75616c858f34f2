"""The knowledge base: documents of tenants, found by the meaning of a question."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any, Self

from serving.errors import InputError
from serving.gateway.knowledge.chunks import Chunk, Chunker
from serving.gateway.knowledge.embeddings import Embedder
from serving.gateway.knowledge.milvus import Collection, owner_of
from serving.gateway.knowledge.passages import Added, Document, KnowledgeError, Passage, Source
from serving.gateway.knowledge.rows import ROWS_AT_ONCE, check, groups, row_id, rows_of

SHARED = ""
"""The tenant whose documents all tenants find."""
_WRITE_S = 60.0
_IDS_AT_ONCE = 1_000
_HEAD = ["tenant", "source", "title", "digest", "passages"]


class Knowledge:
    """Documents in Milvus; `search` finds the passages nearest in meaning to a question.

    Nothing is connected before `start` or the first call, and what is lost is connected again.

    Args:    uri: a path that ends in .db (Milvus Lite in this process), or http://host:19530.
             embedder: None will do for `sources` and `remove`.
             time_limit_s: of a search, embedding included; longer is a KnowledgeError.
             retry_s: for how long after a failure calls fail at once; also how often the version is
             read.
    """

    def __init__(
        self,
        uri: str,
        embedder: Embedder | None,
        *,
        collection: str = "knowledge",
        chunker: Chunker | None = None,
        time_limit_s: float = 1.0,
        retry_s: float = 1.0,
    ) -> None:
        self._embedder = embedder
        model = embedder.name if embedder else None
        self._collection = Collection(uri, collection, model, retry_s=retry_s)
        self._chunker = chunker or Chunker(embedder.tokenizer if embedder else None)
        self._time_limit_s = time_limit_s
        self._retry_s = retry_s
        self._writing = asyncio.Lock()
        self._version = ""
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, uri: str, embedder: Embedder | None, **options: Any) -> Self:
        """A knowledge base that is ready to answer; options as of the class.

        Raises:  KnowledgeError: Milvus or the embedder does not answer, or another model filled it.
        """
        knowledge = cls(uri, embedder, **options)
        try:
            await knowledge.start()
        except BaseException:
            await knowledge.close()
            raise
        return knowledge

    async def start(self) -> None:
        """Load the embedding model, connect, and follow the version from now on.

        Where it fails all the same goes on by itself: the first search that can answer does.

        Raises:  KnowledgeError: as `open`.
        """
        if self._watch is None:
            self._watch = asyncio.create_task(self._follow())
        if self._embedder is not None:
            (vector,) = await self._embed(["ready"])
            # Otherwise the first request would wait while the index is built.
            await self._nearest(vector, SHARED, 1, time_limit_s=_WRITE_S)
        self._version = await self._collection.version(time_limit_s=_WRITE_S)

    async def close(self) -> None:
        """Give back connection, file and embedder."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self._collection.close()
        if self._embedder is not None:
            await self._embedder.close()

    @property
    def version(self) -> str:
        """Changes whenever the content does; at most `retry_s` and a round trip old."""
        return self._version

    async def search(
        self, question: str, tenant: str, top_k: int = 3, min_score: float = 0.3
    ) -> tuple[Passage, ...]:
        """The passages of a tenant and of all, nearest first; none where nothing is near enough.

        Raises:  KnowledgeError: no answer within the time limit.
        """
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(self._time_limit_s):
                (vector,) = await self._embed([question])
        except TimeoutError:
            raise KnowledgeError(
                f"the embedding model took longer than {self._time_limit_s:g} s",
                remedy="Is the machine busy, or the model still loading?",
            ) from None
        left_s = max(began_s + self._time_limit_s - time.monotonic(), 0.01)
        hits = await self._nearest(vector, tenant, top_k, time_limit_s=left_s)
        found = (
            Passage(**{name: hit["entity"][name] for name in _FOUND}, score=hit["distance"])
            for hit in hits
        )
        return tuple(passage for passage in found if passage.score >= min_score)

    async def add(
        self,
        documents: Iterable[Document],
        tenant: str = SHARED,
        *,
        on_progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> Added:
        """Put documents in, each in place of what its source had; the same content adds nothing.

        Args:    on_progress: called with the documents that are done, and their number.

        Raises:  KnowledgeError: Milvus or the embedder does not answer; adding again goes on.
                 InputError: a source twice, or a tenant of more than 256 characters.
        """
        documents = list(documents)
        check(documents, tenant)
        async with self._writing:
            (probe,) = await self._embed(["dimension"])
            await self._collection.create(len(probe), time_limit_s=_WRITE_S)
            known = {source.source: source for source in await self._heads(tenant)}
            digests = {document.source: self._digest(document) for document in documents}
            new = [
                document
                for document in documents
                if document.source not in known
                or known[document.source].digest != digests[document.source]
            ]
            written = done = 0
            on_progress(0, len(new))
            async with self._changing(bool(new)):
                for group in groups([(document, self._chunker.cut(document)) for document in new]):
                    written += await self._write(group, known, digests, tenant)
                    done += len(group)
                    on_progress(done, len(new))
        replaced = sum(bool(known[d.source].digest) for d in new if d.source in known)
        return Added(
            added=len(new) - replaced,
            replaced=replaced,
            unchanged=len(documents) - len(new),
            passages=written,
        )

    async def remove(self, source: str, tenant: str = SHARED) -> bool:
        """Take a document out; False where the tenant has no such source."""
        async with self._writing:
            held = {found.source: found for found in await self._heads(tenant)}
            if source not in held:
                return False
            async with self._changing(True):
                await self._delete(tenant, source, range(held[source].passages))
        return True

    async def sources(self, tenant: str | None = None) -> tuple[Source, ...]:
        """The documents of a tenant, or of all, by tenant and name."""
        return tuple(source for source in await self._heads(tenant) if source.digest)

    # -- within ----------------------------------------------------------------------------------

    async def _embed(self, texts: list[str]) -> list[list[float]]:
        if self._embedder is None:
            raise InputError("nothing embeds the texts", remedy="Open it with an embedder.")
        vectors = await self._embedder.embed(texts)
        self._collection.dimension = len(vectors[0])
        return vectors

    async def _do(self, operation: Callable[[Any, str], Any]) -> Any:
        return await self._collection.call(operation, None, time_limit_s=_WRITE_S)

    async def _nearest(
        self, vector: list[float], tenant: str, top_k: int, *, time_limit_s: float
    ) -> Sequence[Any]:
        owners = json.dumps(sorted({owner_of(tenant), owner_of(SHARED)}))
        hits: Sequence[Sequence[Any]] = await self._collection.call(
            lambda client, name: client.search(
                name,
                [vector],
                anns_field="vector",
                filter=f"owner in {owners}",
                limit=top_k,
                output_fields=_FOUND,
                timeout=time_limit_s,
            ),
            [[]],
            time_limit_s=time_limit_s,
        )
        return hits[0]

    async def _heads(self, tenant: str | None) -> list[Source]:
        """First passages; without a digest those of documents that are not whole yet."""
        where = "position == 0" + ("" if tenant is None else f' and owner == "{owner_of(tenant)}"')
        rows = await self._do(
            lambda c, n: c.query(n, filter=where, output_fields=_HEAD, consistency_level="Strong")
        )
        found = (Source(**{name: row[name] for name in _HEAD}) for row in rows or ())
        return sorted(found, key=lambda source: (source.tenant, source.source))

    async def _write(
        self,
        group: list[tuple[Document, list[Chunk]]],
        known: dict[str, Source],
        digests: dict[str, str],
        tenant: str,
    ) -> int:
        """Write documents; their heads get a digest, which says that all is there, at the end."""
        held = {name: source.passages for name, source in known.items()}
        rows = [
            row
            for document, chunks in group
            for row in rows_of(document, chunks, tenant, held.get(document.source, 0))
        ]
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            vectors = await self._embed([row.pop("embedded") for row in part])
            for row, vector in zip(part, vectors, strict=True):
                row["vector"] = vector
            await self._upsert(part)
        for document, chunks in group:
            surplus = range(len(chunks), held.get(document.source, 0))
            await self._delete(tenant, document.source, surplus)
        heads = [row for row in rows if row["position"] == 0]
        for head, (document, chunks) in zip(heads, group, strict=True):
            head |= {"digest": digests[document.source], "passages": len(chunks)}
        await self._upsert(heads)
        return len(rows)

    async def _upsert(self, rows: list[dict[str, Any]]) -> None:
        await self._do(lambda c, n: c.upsert(n, rows))

    async def _delete(self, tenant: str, source: str, positions: range) -> None:
        ids = [row_id(tenant, source, position) for position in positions]
        for start in range(0, len(ids), _IDS_AT_ONCE):
            await self._delete_ids(ids[start : start + _IDS_AT_ONCE])

    async def _delete_ids(self, ids: list[str]) -> None:
        await self._do(lambda c, n: c.delete(n, ids=ids))

    @contextlib.asynccontextmanager
    async def _changing(self, changes: bool) -> AsyncIterator[None]:
        """A new version before and after, so that neither half-written content keeps an old one."""
        if not changes:
            yield
            return
        await self._renew()
        try:
            yield
        finally:
            await self._renew()
        # Milvus Lite searches what is not flushed row by row, in Python.
        await self._do(lambda c, n: c.flush(n))

    async def _renew(self) -> None:
        version = secrets.token_hex(6)
        await self._collection.set_version(version, time_limit_s=_WRITE_S)
        self._version = version

    async def _follow(self) -> None:
        """Others write to the server too."""
        while True:
            await asyncio.sleep(self._retry_s)
            with contextlib.suppress(KnowledgeError):
                self._version = await self._collection.version(time_limit_s=self._time_limit_s)

    def _digest(self, document: Document) -> str:
        made_of = [document.title, document.text, self._chunker.made_by]
        return sha256(json.dumps(made_of).encode()).hexdigest()[:32]


_FOUND = ["source", "title", "position", "text"]
