"""Files become documents: text, Markdown, HTML, JSON, JSON lines and PDF."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from serving.errors import InputError
from serving.gateway.knowledge.passages import Document
from serving.values import one_line

SUFFIXES = (".txt", ".md", ".html", ".htm", ".json", ".jsonl", ".pdf")
_UNSEEN = ("script", "style", "noscript", "template", "svg", "nav", "header", "footer")


def read_documents(path: Path) -> list[Document]:
    """The documents of a file, or of all files below a folder that can be read.

    JSON is a document {"text": ..., "title": ..., "source": ...} or a list of them, JSON lines one a
    line; without `source` it is the file with the number of the document.

    Raises:  InputError: no such file, another kind of file, not UTF-8, or without text.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            raise InputError(f"{path} holds no file of {_KINDS}", remedy="Name another folder.")
        return [document for file in files for document in read_documents(file)]
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path} is not of {_KINDS}", remedy="Convert it first.")
    try:
        documents = list(_READERS[suffix](path))
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror})", remedy="Check the path."
        ) from None
    if not any(document.text.strip() for document in documents):
        raise InputError(
            f"{path} holds no text", remedy="A scanned PDF has to be recognised first."
        )
    return [document for document in documents if document.text.strip()]


_KINDS = " ".join(SUFFIXES)


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x})",
            remedy=f"Convert it: iconv -f WINDOWS-1252 -t UTF-8 {path.name}",
        ) from None


def _text(path: Path) -> Iterator[Document]:
    text = _decoded(path)
    heading = re.search(r"^#\s+(.+?)\s*#*$", text, re.MULTILINE) if path.suffix == ".md" else None
    yield Document(source=str(path), title=heading[1] if heading else path.stem, text=text)


def _html(path: Path) -> Iterator[Document]:
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    page = BeautifulSoup(_decoded(path), "html.parser")
    for element in page(_UNSEEN):
        element.decompose()
    title = page.title.get_text(" ", strip=True) if page.title else ""
    body = page.find("main") or page.body or page
    markdown = MarkdownConverter(heading_style="ATX", strip=["a", "img"]).convert_soup(body)
    yield Document(
        source=str(path), title=title or path.stem, text=re.sub(r"\n{3,}", "\n\n", markdown)
    )


def _json(path: Path) -> Iterator[Document]:
    try:
        found = json.loads(_decoded(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error})", remedy="Mend it.") from None
    entries = found if isinstance(found, list) else [found]
    for number, entry in enumerate(entries, 1):
        yield _entry(entry, path, number)


def _json_lines(path: Path) -> Iterator[Document]:
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        if line.strip():
            try:
                yield _entry(json.loads(line), path, number)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{path} line {number} is not JSON ({error.msg})", remedy="Mend the line."
                ) from None


def _entry(entry: Any, path: Path, number: int) -> Document:
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise InputError(
            f"{path} entry {number} has no text", remedy='Write {"text": ..., "title": ...}.'
        )
    try:
        return Document(
            source=entry.get("source", f"{path}#{number}"),
            title=entry.get("title", path.stem),
            text=entry["text"],
        )
    except ValidationError as error:
        raise InputError(
            f"{path} entry {number}: {one_line(error)}", remedy="Mend the entry."
        ) from None


def _pdf(path: Path) -> Iterator[Document]:
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(path)
        text = "\n\n".join(page.extract_text() for page in reader.pages)
        title = reader.metadata.title if reader.metadata else None
    except PyPdfError as error:
        raise InputError(
            f"{path} is no PDF that can be read ({error})", remedy="Save it again, unencrypted."
        ) from None
    yield Document(source=str(path), title=title or path.stem, text=text)


_READERS = {
    ".txt": _text,
    ".md": _text,
    ".html": _html,
    ".htm": _html,
    ".json": _json,
    ".jsonl": _json_lines,
    ".pdf": _pdf,
}
