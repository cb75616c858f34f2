"""Completion in bash, by the script that `--show-completion` prints and the installed programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import without_checkout

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed"),
]


def completed(programs: Path, line: str, cwd: Path) -> list[str]:
    """What Tab offers at the end of the line."""
    words = line.split(" ")
    script = f"""
        eval "$({words[0]} --show-completion)"
        complete -p {words[0]} | grep -q -- '-o default' || exit 3  # else no file names
        COMP_WORDS=({" ".join(words[:-1])} "{words[-1]}")
        COMP_CWORD={len(words) - 1}
        _{words[0]}_completion {words[0]}
        printf '%s\\n' "${{COMPREPLY[@]}}"
        """
    path = f"{programs}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=cwd,
        env={**without_checkout(), "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [word for word in done.stdout.splitlines() if word]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("workbench comp", ["compress", "compare"]),
        ("workbench compress q", ["quantize"]),
        ("workbench compress quantize int8-", ["int8-gptq", "int8-smoothquant"]),
        ("workbench tune --tr", ["--trials"]),
        ("serving roll", ["rollout"]),
        ("serving rollout pro", ["promote"]),
        # Nothing of its own: bash offers the files.
        ("workbench study experiments/fl", []),
    ],
)
def test_words_are_completed(programs: Path, tmp_path: Path, line: str, offered: list[str]) -> None:
    assert sorted(completed(programs, line, tmp_path)) == sorted(offered)


def test_variants_are_those_of_the_data_directory(programs: Path, tmp_path: Path) -> None:
    for name in ("int8-gptq", "small-int8"):
        folder = tmp_path / "mine" / "variants" / name
        folder.mkdir(parents=True)
        (folder / "card.json").write_text("{}")
    line = "workbench compress judge --workdir mine small"
    assert completed(programs, line, tmp_path) == ["small-int8"]
