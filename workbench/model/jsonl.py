"""Text and questions of the user's own, from JSONL files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serving.errors import InputError
from workbench.model.tasks import Task

_JSONL = 'Each line is {"text": ...}, {"messages": [...]} or {"question": ..., "answer": ...}.'


def documents_of(path: Path) -> list[str]:
    """Texts of a JSONL file.

    Raises:  InputError: not there, or a line that is none of the kinds.
    """
    return [_text_of(line) or _refuse(path, number) for number, line in _lines(path)]


def tasks_of(path: Path) -> list[Task]:
    """Questions of a JSONL file with one right answer each.

    Raises:  InputError: not there, or a line without question and answer.
    """
    return [
        Task(path.stem, str(line["question"]), str(line["answer"]).strip())
        if {"question", "answer"} <= set(line)
        else _refuse(path, number)
        for number, line in _lines(path)
    ]


def _lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        texts = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"cannot read {path} ({said})", remedy="Check the path.") from error
    found = []
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            _refuse(path, number)
        found.append((number, line))
    if not found:
        raise InputError(f"{path} is empty", remedy=_JSONL)
    return found


def _text_of(line: dict[str, Any]) -> str:
    if "messages" in line:
        return "\n".join(str(message.get("content", "")) for message in line["messages"])
    if "question" in line:
        return f"{line['question']}\n{line.get('answer', '')}"
    return str(line.get("text", ""))


def _refuse(path: Path, number: int) -> Any:
    raise InputError(f"{path}:{number} is not a line of such a file", remedy=_JSONL)
