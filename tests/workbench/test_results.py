"""What follows from the results of a data directory alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import InfeasibleError
from tests.workbench.conftest import latency_model, variant
from workbench.pipeline import Pipeline
from workbench.results import Results, peak_of
from workbench.settings import Settings


class Fitted(Results):
    """Results whose models are of these speeds: seconds that a step takes at least."""

    def __init__(self, workdir: Path, base_s: dict[str, float]) -> None:
        super().__init__(Pipeline(workdir, Settings(), ()))
        self.base_s = base_s

    def variants(self):  # type: ignore[no-untyped-def]
        return [variant(name) for name in self.base_s]

    def latency_models(self):  # type: ignore[no-untyped-def]
        return {
            name: latency_model(name).model_copy(update={"base_s": base_s})
            for name, base_s in self.base_s.items()
        }


def test_the_day_is_made_for_the_parent_or_the_first_that_keeps_the_slo(tmp_path: Path) -> None:
    found = Fitted(tmp_path, {"parent": 1.0, "int8": 0.002, "pruned": 0.001})
    int8, pruned = (found.latency_models()[name] for name in ("int8", "pruned"))
    assert found.peak_rps() == peak_of(found.settings, int8, found.settings.engine)
    found = Fitted(tmp_path, {"pruned": 0.001, "int8": 0.002})
    assert found.peak_rps() == peak_of(found.settings, pruned, found.settings.engine)


def test_where_no_variant_keeps_the_slo_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match="one request at a time"):
        Fitted(tmp_path, {"parent": 1.0, "int8": 2.0}).peak_rps()
