"""What a user may choose about a run, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.settings import Settings


def test_only_profiles_with_lengths_describe_a_whole_day() -> None:
    assert Settings(profile="servegen-m-large").lengths()["prompt_tokens"].median_tokens == 634 / 4
    with pytest.raises(ValueError, match=r"profile\(='microsoft365-a'\) must be one of"):
        Settings(profile="microsoft365-a")


def test_who_runs_the_trials_is_not_remembered(tmp_path: Path) -> None:
    chosen = Settings(ray="10.0.0.1:6379", trials_at_once=8)
    chosen.write(tmp_path / "settings.json")
    known = Settings.read(tmp_path / "settings.json")
    assert (chosen.ray, known.ray, known.trials_at_once) == ("10.0.0.1:6379", None, 8)
