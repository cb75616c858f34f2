"""What every value has: a typo is told with what was meant."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from serving.plan import EngineArgs, Plan
from serving.values import one_line
from tests.serving.plans import plan


def test_a_typo_is_named_with_the_field_that_was_meant() -> None:
    with pytest.raises(ValidationError) as caught:
        EngineArgs.model_validate({"max_modle_len": 512})
    told = "EngineArgs: max_modle_len is not known; did you mean max_model_len?"
    assert one_line(caught.value) == told
    with pytest.raises(ValidationError) as caught:
        Plan.model_validate(plan().model_dump() | {"engine": {"max_num_seq": 8}})
    assert one_line(caught.value) == "engine: max_num_seq is not known; did you mean max_num_seqs?"


def test_what_resembles_no_field_is_refused_by_its_name() -> None:
    with pytest.raises(ValidationError) as caught:
        EngineArgs.model_validate({"colour": "blue"})
    assert one_line(caught.value).startswith("colour(='blue'): ")
