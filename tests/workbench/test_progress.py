"""A bar that stages report to."""

from __future__ import annotations

import pytest

from workbench.progress import bar


def test_a_bar_says_what_is_done_and_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    report = bar()
    report("fitting", 0.25)
    report("done", 1.5)
    told = capsys.readouterr().err
    assert " 25%|" in told
    assert "fitting" in told
    assert "100%|" in told
    assert "150%" not in told
