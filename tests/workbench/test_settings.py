"""What a user may choose about a run, and what is refused."""

from __future__ import annotations

import pytest

from workbench.settings import Settings


def test_only_profiles_with_lengths_describe_a_whole_day() -> None:
    assert Settings(profile="servegen-m-large").lengths()["prompt_tokens"].median_tokens == 634 / 4
    with pytest.raises(ValueError, match=r"profile\(='microsoft365-a'\) must be one of"):
        Settings(profile="microsoft365-a")
