"""Every command and code block of the documents is run, or held against what it calls.

In a page a comment above a block says what becomes of it; readers do not see it:

    <!-- run -->          it is executed, in the order of the page, in a folder of its own
    <!-- file: NAME -->   it is that file there

Python is always executed. Other commands, which need minutes or a cluster, are parsed by the programs
themselves, and some test runs each of them (RUN_BY). What is not understood fails.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import serving.cli
import workbench.cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
NEEDS_VLLM = {"README.md"}
"""Pages whose code starts vLLM."""
PROGRAMS: dict[str, Any] = {
    "workbench": typer.main.get_command(workbench.cli.app),
    "serving": typer.main.get_command(serving.cli.app),
}
RUN_BY = {
    "workbench demo": "tests/test_demo.py",
    "workbench measure": "tests/test_demo.py",
    "workbench fit": "tests/test_demo.py",
    "workbench tune": "tests/test_demo.py",
    "workbench export": "tests/test_demo.py",
    "workbench verify": "tests/test_demo.py",
    "workbench report": "tests/test_demo.py",
    "workbench simulate": "tests/workbench/test_cli.py",
    "workbench compress": "tests/workbench/test_cli_compressing.py",
    "workbench payoff": "tests/workbench/test_cli_compressing.py",
    "workbench load": "tests/workbench/test_cli_measuring.py",
    "workbench compare": "tests/workbench/test_cli_measuring.py",
    "workbench capacity": "tests/workbench/test_cli_measuring.py",
    "workbench study": "tests/workbench/test_studies.py",
    "workbench runs": "tests/workbench/test_runs.py",
    "workbench log": "tests/workbench/test_runs.py",
    "workbench fidelity": "tests/workbench/fidelity/test_fidelity.py",
    "workbench serve": "tests/workbench/test_serve.py",
    "workbench doctor": "tests/workbench/test_cli_doctor.py",
    "workbench examples": "tests/workbench/test_cli_examples.py",
    "workbench model": "tests/workbench/model/test_train.py",
    "serving gateway": "tests/serving/gateway/processes.py",
    "serving doctor": "tests/workbench/test_cli_doctor.py",
    "serving kb": "tests/serving/test_cli_kb.py",
    "serving keys": "tests/serving/gateway/test_keys.py",
    "serving logs": "tests/serving/test_logs_report.py",
    "serving rollout": "tests/serving/test_cli_rollout.py",
}
"""Where each command is tested; all those of the pipeline are what `demo` runs."""
_BLOCK = re.compile(
    r"^(?:<!-- (?P<run>run|file: (?P<file>\S+)) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_OURS = re.compile(r"`((?:workbench|serving|make) [^`]+)`")


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    run: bool
    file: str | None


def blocks(page: Path) -> list[Block]:
    return [
        Block(m["language"], m["text"], m["run"] == "run", m["file"])
        for m in _BLOCK.finditer(page.read_text())
    ]


def commands(text: str) -> Iterator[list[str]]:
    """Each simple command of a piece of shell, as words."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;><")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set("|&;"):
                words.append(word)
            elif words:
                yield words
                words = []


def check(words: list[str]) -> None:
    """Hold a command against the program that it calls."""
    while re.match(r"^\w+=", words[0]):
        words = words[1:]
    if ">" in words or ">>" in words:
        words = words[: next(at for at, word in enumerate(words) if word in (">", ">>"))]
    program = words[0].removeprefix(".venv/bin/")
    assert program in CHECKS, f"who knows {program}? Add it to CHECKS of {Path(__file__).name}"
    CHECKS[program](words[1:]) if program not in PROGRAMS else parse([program, *words[1:]])
    for word in words[1:]:
        if re.match(
            r"^\.?(experiments|notebooks|docs|tests|requirements|benchmarks)/\S+\.\w", word
        ):
            assert list(ROOT.glob(word)), f"{word} is not there"


def parse(words: list[str]) -> None:
    """By the real parser, which knows every subcommand, option and type; nothing is run."""
    command, rest = PROGRAMS[words[0]], words[1:]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"{' '.join(words)}: no {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    if rest in (["--help"], ["-h"], ["--show-completion"], ["--install-completion"]):
        return
    command.make_context(words[0], rest)
    name = " ".join(words[:2])
    assert name in RUN_BY, f"which test runs {name}? Add it to RUN_BY"


def _make(words: list[str]) -> None:
    subprocess.run(["make", "-n", *words], cwd=ROOT, check=True, capture_output=True)


def _python(words: list[str]) -> None:
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]), words
    else:
        assert (ROOT / words[0]).is_file(), words


def _pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words[1:]:
        name, _, extras = word.rstrip("]").partition("[")
        assert set(filter(None, extras.split(","))) <= set(project["optional-dependencies"]), word
        if name.startswith("."):
            assert (ROOT / name / "pyproject.toml").is_file(), word
        elif not name.startswith("-") and not name.endswith(".whl"):
            assert name == project["name"], word


def _pytest(words: list[str]) -> None:
    for word in words:
        if word.startswith("tests"):
            assert (ROOT / word.partition("::")[0]).exists(), word


def _curl(words: list[str]) -> None:
    from serving.gateway.openapi import description
    from serving.gateway.settings import Settings

    known = description(Settings(model="m", tracks={"blue": ["http://127.0.0.1:1"]}))["paths"]
    address = next(word for word in words if word.startswith("http"))
    assert "/" + address.split("/", 3)[3] in known, address
    if "-d" in words:
        json.loads(words[words.index("-d") + 1])


def _kubectl(words: list[str]) -> None:
    assert words[0] in {"apply", "create", "get", "logs", "kustomize", "rollout", "delete"}, words
    for word in words:
        if word.startswith("overlays/"):
            assert word in {f"overlays/{t}" for t in ("stable", "canary", "blue", "green")}, word


def _known(*first: str) -> Callable[[list[str]], None]:
    """A program that is not ours, used in these ways only."""

    def look(words: list[str]) -> None:
        assert words[0] in first, words

    return look


CHECKS: dict[str, Callable[[list[str]], None]] = {
    **dict.fromkeys(PROGRAMS, parse),
    "make": _make,
    "python": _python,
    "python3": _python,
    "pip": _pip,
    "pytest": _pytest,
    "curl": _curl,
    "kubectl": _kubectl,
    "git": _known("clone", "switch", "commit"),
    "cd": _known("llm-workbench", "runs/export/bundle", "bundle"),
    "cp": _known("-r"),
    "conda": _known("env", "run"),
    "vllm": _known("serve"),
    "pre-commit": _known("install", "run"),
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(params=PAGES, ids=name_of)
def page(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def test_every_block_says_what_it_is(page: Path) -> None:
    text = page.read_text()
    assert len(blocks(page)) == len(re.findall(r"^```", text, re.MULTILINE)) / 2
    assert {block.language for block in blocks(page)} <= {"sh", "python", "json", "yaml", "text"}
    assert text.count("<!-- run -->") == sum(block.run for block in blocks(page))


def test_commands_are_those_of_the_programs(page: Path) -> None:
    for block in blocks(page):
        if block.language == "sh":
            for words in commands(block.text):
                check(words)


def test_commands_within_sentences_are_there_too(page: Path) -> None:
    for said in _OURS.findall(page.read_text()):
        words = shlex.split(said)
        if words[0] == "make":
            _make(words[1:2])
            continue
        command = PROGRAMS[words.pop(0)]
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        asked = words and not words[0].startswith(("-", "<"))
        assert not (hasattr(command, "commands") and asked), f"`{said}`: no {words[0]}"
        known = {name for option in command.params for name in option.opts + option.secondary_opts}
        for word in words:
            if word.startswith("--") and word != "--help":
                assert word in known, f"`{said}`: no {word}"


def test_data_is_well_formed(page: Path) -> None:
    for block in blocks(page):
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            list(yaml.safe_load_all(block.text))
        elif block.language == "python":
            ast.parse(block.text)


def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for target in _LINK.findall(text):
        if not re.match(r"^(https?:|mailto:|#)", target):
            made = page.is_relative_to(ROOT / "docs") and target.startswith(
                ("reference/", "../reference/", "notebooks.md", "../notebooks.md", "project/")
            )
            assert made or (page.parent / target.partition("#")[0]).exists(), target


def runs_something(page: Path) -> bool:
    return any(block.run or block.language == "python" for block in blocks(page))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.vllm] if name_of(page) in NEEDS_VLLM else [])
        for page in PAGES
        if runs_something(page)
    ],
    ids=name_of,
)
def test_what_can_be_run_runs(page: Path, tmp_path: Path) -> None:
    for name in ("experiments", "docs", "notebooks"):
        (tmp_path / name).symlink_to(ROOT / name)
    programs = tmp_path / ".programs"
    programs.mkdir()
    for name in PROGRAMS:
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {name}.cli "$@"\n')
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    for block in blocks(page):
        if block.file:
            (tmp_path / block.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.file).write_text(block.text)
        elif block.run or block.language == "python":
            starter = ["bash", "-e", "-c"] if block.language == "sh" else [sys.executable, "-c"]
            done = subprocess.run(
                [*starter, block.text],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=600,
            )
            assert done.returncode == 0, f"{block.text}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("command", RUN_BY)
def test_the_test_of_a_command_speaks_of_it(command: str) -> None:
    program, name = command.split()
    assert name in PROGRAMS[program].commands
    where = RUN_BY[command]
    # The demo is the stages one after another; the command of one is the same call.
    said = "demo" if where == "tests/test_demo.py" else name
    assert re.search(rf"\b{said}\b", (ROOT / where).read_text())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("workbench meassure", "no meassure"),
        ("workbench demo --modle x", "modle"),
        ("workbench demo --peak-rps many", "valid number"),
        ("workbench study experiments/none.yaml", "experiments/none.yaml is not there"),
        ("make coffee", "make"),
        ("frobnicate --all", "who knows frobnicate"),
        ("pip install ./serving[none]", "none"),
        ("curl http://127.0.0.1:8080/v2/chat", "v2/chat"),
        ("workbench examples | workbench nothing", "no nothing"),
    ],
)
def test_what_is_wrong_is_found(text: str, says: str) -> None:
    *before, last = commands(text)
    for words in before:
        check(words)
    with pytest.raises(Exception, match=re.escape(says)):
        check(last)
