from __future__ import annotations

from pathlib import Path

import pytest

from serving.plan import Variant
from workbench.model import shipped_checkpoint

from .support import toy_variant


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    return toy_variant(tmp_path / "toy")


@pytest.fixture(scope="session")
def real_variant() -> Variant:
    """The shipped model, for tests that start real vLLM."""
    return Variant(name="demo", model=str(shipped_checkpoint()))
