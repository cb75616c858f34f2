"""A document is cut at headings and paragraphs into passages of limited length."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from serving.errors import InputError
from serving.gateway.knowledge.passages import Document

if TYPE_CHECKING:
    from semantic_text_splitter import MarkdownSplitter

_CHARACTERS_PER_TOKEN = 4
"""Of English text, where the tokenizer is not known."""
_LONGEST = 8
"""Characters per token above which a passage is no prose: a tokenizer sees one token in any long word."""
_MOST_TOKENS = 2_000
"""What a field of Milvus holds in any alphabet."""
_LONGEST_TITLE = 160
_HEADING = re.compile(
    r"^(?P<fence>```|~~~).*?(?:^(?P=fence)|\Z)"
    r"|^(?P<level>#{1,6})[ \t]+(?P<text>[^\n]+?)[ \t]*#*[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
"""A heading, or a block of code, in which # begins a comment."""


class Chunk(NamedTuple):
    """A passage before it is embedded."""

    title: str
    text: str

    @property
    def embedded(self) -> str:
        """What is embedded: a paragraph alone seldom says what it is about."""
        return f"{self.title}\n\n{self.text}"


class Chunker:
    """Cuts documents.

    Args:    tokenizer: tokenizer.json of the embedding model; None counts 4 characters as a token.
             tokens: most tokens of a passage, without its title.
             overlap: tokens at most that a passage repeats of the one before it.
    """

    def __init__(self, tokenizer: Path | None, *, tokens: int = 200, overlap: int = 40) -> None:
        if not 0 <= overlap < tokens <= _MOST_TOKENS:
            raise InputError(
                f"passages of {tokens} tokens with {overlap} repeated cannot be made",
                remedy=f"Use at most {_MOST_TOKENS} tokens, and an overlap below that.",
            )
        self.made_by = f"{tokenizer.name if tokenizer else 'characters'}/{tokens}/{overlap}"
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._overlap = overlap
        self._splitter: MarkdownSplitter | None = None

    def cut(self, document: Document) -> list[Chunk]:
        """The passages of a document in order; none goes beyond a heading."""
        self._splitter = self._splitter or self._make()
        chunks = [
            Chunk(title, part)
            for title, section in _sections(document)
            for passage in self._splitter.chunks(section)
            for part in self._limited(passage)
        ]
        # Of a document of headings alone, these are its text.
        return chunks or [
            Chunk(_title(document.title, []), part) for part in self._limited(document.text.strip())
        ]

    def _make(self) -> MarkdownSplitter:
        from semantic_text_splitter import MarkdownSplitter

        if self._tokenizer is None:
            scale = _CHARACTERS_PER_TOKEN
            return MarkdownSplitter(self._tokens * scale, self._overlap * scale)
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._tokenizer))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return MarkdownSplitter.from_huggingface_tokenizer(tokenizer, self._tokens, self._overlap)

    def _limited(self, passage: str) -> Iterator[str]:
        longest = self._tokens * _LONGEST
        for start in range(0, len(passage), longest):
            yield passage[start : start + longest]


def _sections(document: Document) -> Iterator[tuple[str, str]]:
    """The text under each heading, with the document's title and the headings that it is under."""
    text = document.text.replace("\r\n", "\n")
    above: list[tuple[int, str]] = []
    start = 0
    for heading in _HEADING.finditer(text):
        if heading["level"] is None:
            continue
        yield _title(document.title, above), text[start : heading.start()]
        level, start = len(heading["level"]), heading.end()
        above = [(other, name) for other, name in above if other < level]
        above.append((level, heading["text"]))
    yield _title(document.title, above), text[start:]


def _title(title: str, above: list[tuple[int, str]]) -> str:
    names = [title, *(name for _, name in above)]
    return " > ".join(dict.fromkeys(name for name in names if name))[:_LONGEST_TITLE]
