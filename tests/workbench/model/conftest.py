"""A corpus of a few modules, so that training, its card and its tokenizer take seconds."""

from __future__ import annotations

import pytest

from workbench.model import card, corpus, train


@pytest.fixture
def small_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [(name, text[:4000]) for name, text in corpus._library()[:60]]
    assert any(corpus.is_heldout(name, corpus.HELDOUT_SHARE) for name, _ in documents)
    monkeypatch.setattr(corpus, "_library", lambda: documents)
    monkeypatch.setattr(card, "TASKS", 20)
    monkeypatch.setattr(train, "TOKENIZER_TASKS", 200)
