"""The knowledge base: documents in Milvus, found by meaning, cited in answers.

passages.py    what is found, as the model is told it and as the answer cites it
documents.py   files -> documents        chunks.py   a document -> passages of a few paragraphs
embeddings.py  texts -> vectors, in a process of its own or by a URL
milvus.py      the connection: time limit, reconnecting      rows.py     documents -> rows of it
store.py       Knowledge: add, remove, search

Milvus, torch and aiohttp are imported when they are first needed.
"""

from serving.gateway.knowledge.documents import read_documents
from serving.gateway.knowledge.embeddings import (
    Embedder,
    LocalEmbedder,
    RemoteEmbedder,
    choose_embedder,
)
from serving.gateway.knowledge.passages import (
    Added,
    Document,
    KnowledgeError,
    Passage,
    Source,
    citations,
    prompt,
)
from serving.gateway.knowledge.store import Knowledge

__all__ = [
    "Added",
    "Document",
    "Embedder",
    "Knowledge",
    "KnowledgeError",
    "LocalEmbedder",
    "Passage",
    "RemoteEmbedder",
    "Source",
    "choose_embedder",
    "citations",
    "prompt",
    "read_documents",
]
