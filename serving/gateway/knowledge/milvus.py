"""The connection to Milvus: one collection, opened when needed, and again after it was lost.

A row is a passage. Tenants are a partition key, as hashes, so that no filter holds a text from outside.
One row more, of no tenant, says whose embeddings the vectors are and which version the content has.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from serving.errors import InputError
from serving.gateway.knowledge.passages import KnowledgeError

T = TypeVar("T")

_STATE = "state"
_PARTITIONS = 16
_SCALARS = {"id": 64, "owner": 64, "tenant": 1024, "source": 1024}
_TEXTS = {"title": 1024, "digest": 64, "text": 65_535}


def owner_of(tenant: str) -> str:
    """The partition of a tenant."""
    return sha256(tenant.encode()).hexdigest()[:32]


class Collection:
    """A collection of passages.

    Args:    uri: a path that ends in .db (Milvus Lite in this process), or http://host:19530.
             model: name of the embedding model that asks and fills; None takes what is there.
             retry_s: for how long after a failure calls fail at once.
    """

    def __init__(self, uri: str, name: str, model: str | None, *, retry_s: float) -> None:
        self.embedded = "://" not in uri
        if self.embedded and not uri.endswith(".db"):
            raise InputError(
                f"knowledge base {uri!r} is neither a path ending in .db nor an address",
                remedy="Say for example knowledge.db or http://127.0.0.1:19530.",
            )
        self.uri = uri
        self._name = name
        self._model = model
        self.dimension: int | None = None
        """Of the vectors that will be asked for or written, once that is known."""
        self._retry_s = retry_s
        self._lock = asyncio.Lock()
        self._client: Any = None
        self._exists = False
        self._failed_s = float("-inf")
        self._failure = ""

    async def call(
        self, operation: Callable[[Any, str], Awaitable[T]], missing: T, *, time_limit_s: float
    ) -> T:
        """Do something with the client and the collection's name; `missing` where there is none yet.

        A connection that turns out to be lost is opened again once, within the same time limit.

        Raises:  KnowledgeError: Milvus does not answer, or holds the vectors of another model.
        """
        if time.monotonic() < self._failed_s + self._retry_s:
            raise self._error(self._failure)
        try:
            async with asyncio.timeout(time_limit_s):
                return await self._try_twice(operation, missing, time_limit_s)
        except KnowledgeError:
            await self._drop()
            raise
        except TimeoutError:
            raise await self._fail(f"did not answer within {time_limit_s:g} s") from None
        except Exception as error:  # grpc's, pymilvus' own and its threads'
            raise await self._fail(_short(error)) from error

    async def create(self, dimension: int, *, time_limit_s: float) -> None:
        """Make the collection where it is not there yet."""
        state = await self.call(_read_state, None, time_limit_s=time_limit_s)
        self._check(state)
        if state is not None:
            return
        try:
            # The asynchronous client cannot make an index on Milvus Lite.
            await asyncio.to_thread(self._create, dimension, time_limit_s)
        except Exception as error:
            raise await self._fail(_short(error)) from error
        state = {"embedding_model": self._model, "dimension": dimension, "version": ""}
        await self.call(lambda c, n: _write_state(c, n, state), None, time_limit_s=time_limit_s)

    async def set_version(self, version: str, *, time_limit_s: float) -> None:
        """Write which version the content has now."""
        state = await self.call(_read_state, None, time_limit_s=time_limit_s)
        if state is not None:
            state["version"] = version
            await self.call(lambda c, n: _write_state(c, n, state), None, time_limit_s=time_limit_s)

    async def version(self, *, time_limit_s: float) -> str:
        """As `set_version` wrote it last; empty where there is no collection."""
        state = await self.call(_read_state, None, time_limit_s=time_limit_s)
        return state["version"] if state else ""

    async def close(self) -> None:
        await self._drop()
        if self.embedded:
            await asyncio.to_thread(_release, self.uri)

    async def _try_twice(
        self, operation: Callable[[Any, str], Awaitable[T]], missing: T, time_limit_s: float
    ) -> T:
        for last in (False, True):
            try:
                client = await self._connected(time_limit_s)
                return await operation(client, self._name) if self._exists else missing
            except KnowledgeError:
                raise
            except Exception:
                if last:
                    raise
                await self._drop()
        raise AssertionError

    async def _connected(self, time_limit_s: float) -> Any:
        async with self._lock:
            if self._client is not None and self._exists:
                return self._client
            if self._client is None:
                self._client = await asyncio.to_thread(_make_client, self.uri, time_limit_s)
            if await self._client.has_collection(self._name, timeout=time_limit_s):
                # After a restart a collection is there, but not loaded.
                await self._client.load_collection(self._name, timeout=time_limit_s)
                self._check(await _read_state(self._client, self._name))
                self._exists = True
            return self._client

    def _check(self, state: dict[str, Any] | None) -> None:
        if state is None or self._model is None:
            return
        theirs = (state["embedding_model"], state["dimension"])
        mine = (self._model, self.dimension or state["dimension"])
        if mine != theirs:
            raise KnowledgeError(
                f"{self.uri} holds embeddings of {theirs[0]!r} ({theirs[1]} numbers),"
                f" not of {mine[0]!r} ({mine[1]} numbers)",
                remedy="Use that model, or fill another knowledge base.",
            )

    def _create(self, dimension: int, time_limit_s: float) -> None:
        from pymilvus import DataType, MilvusClient  # type: ignore[import-untyped]

        schema = MilvusClient.create_schema(enable_dynamic_field=False)
        for name, longest in (_SCALARS | _TEXTS).items():
            schema.add_field(
                name,
                DataType.VARCHAR,
                max_length=longest,
                is_primary=name == "id",
                is_partition_key=name == "owner",
            )
        schema.add_field("position", DataType.INT64)
        schema.add_field("passages", DataType.INT64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
        index = MilvusClient.prepare_index_params()
        index.add_index("vector", index_type="AUTOINDEX", metric_type="COSINE")
        client = MilvusClient(self.uri, timeout=time_limit_s)
        try:
            # One shard keeps the order of writes: who sees a version sees what was written before.
            client.create_collection(
                self._name,
                schema=schema,
                index_params=index,
                num_shards=1,
                num_partitions=_PARTITIONS,
                consistency_level="Bounded",
            )
        finally:
            client.close()

    async def _fail(self, what: str) -> KnowledgeError:
        self._failed_s, self._failure = time.monotonic(), what
        await self._drop()
        return self._error(what)

    def _error(self, what: str) -> KnowledgeError:
        remedy = "Is the path free and of Milvus Lite 3?" if self.embedded else "Does Milvus run?"
        return KnowledgeError(f"knowledge base {self.uri} {what}", remedy=remedy)

    async def _drop(self) -> None:
        client, self._client, self._exists = self._client, None, False
        if client is not None:
            with contextlib.suppress(Exception):
                await client.close()


async def _read_state(client: Any, name: str) -> dict[str, Any] | None:
    rows = await client.get(name, ids=[_STATE], output_fields=["text"])
    state: dict[str, Any] | None = json.loads(rows[0]["text"]) if rows else None
    return state


async def _write_state(client: Any, name: str, state: dict[str, Any]) -> None:
    row: dict[str, Any] = dict.fromkeys((*_SCALARS, *_TEXTS), "")
    row |= {"id": _STATE, "owner": _STATE, "position": -1, "passages": 0}
    row |= {"text": json.dumps(state), "vector": [1.0] + [0.0] * (state["dimension"] - 1)}
    await client.upsert(name, [row])


def _make_client(uri: str, time_limit_s: float) -> Any:
    from pymilvus import AsyncMilvusClient

    # Both print tracebacks of what is told in one line here.
    for name in ("pymilvus", "milvus_lite"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if "://" not in uri:
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
    # Milvus Lite hangs up on who pings as often as the client does by default.
    options = {"grpc.keepalive_time_ms": 600_000, "grpc.keepalive_permit_without_calls": False}
    return AsyncMilvusClient(uri, timeout=time_limit_s, dedicated=True, grpc_options=options)


def _release(uri: str) -> None:
    with contextlib.suppress(ImportError):
        from milvus_lite.server_manager import (  # type: ignore[import-untyped]
            server_manager_instance,
        )

        server_manager_instance.release_server(uri)


def _short(error: BaseException) -> str:
    said = getattr(error, "message", None) or str(error) or type(error).__name__
    return "failed: " + " ".join(str(said).split())[:200]
