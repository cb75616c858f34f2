from __future__ import annotations

import subprocess
import sys

import pytest

from workbench.model.corpus import documents, is_heldout


def test_splits_are_disjoint_and_heldout_is_about_a_twentieth() -> None:
    train, heldout = documents("train"), documents("heldout")
    assert not set(train) & set(heldout)
    assert 0.02 < len(heldout) / (len(train) + len(heldout)) < 0.08
    assert sum(map(len, train)) > 5_000_000


def test_the_split_of_a_name_is_pinned() -> None:
    names = [name for name in "abcdefgh" if is_heldout(f"{name}.py", 0.5)]
    assert names == ["b", "d", "e", "g"]


def test_documents_are_the_same_in_another_process() -> None:
    code = (
        "import hashlib; from workbench.model.corpus import documents; "
        "print(hashlib.sha256(''.join(documents('heldout')).encode()).hexdigest())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout


def test_modules_and_prose_are_in_it_and_tests_are_not() -> None:
    texts = documents("train") + documents("heldout")
    assert any("class Counter(dict)" in text for text in texts)
    assert any(text.startswith("The standard type hierarchy") for text in texts)
    assert not any(
        "class TestCase_Grammar" in text or "test.support" in text[:500] for text in texts
    )


def test_unknown_split_raises() -> None:
    with pytest.raises(ValueError, match="test"):
        documents("test")  # type: ignore[arg-type]


def test_data_needs_no_torch() -> None:
    code = (
        "import sys, workbench.model, workbench.model.corpus, workbench.model.tasks; "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
