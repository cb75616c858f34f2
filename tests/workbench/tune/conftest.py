"""The bounds cost seconds and depend on few things: each is computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serving.values import Value
from workbench.tune import admit, baselines


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[str, Any] = {}

    def call(*args: Any, **kwargs: Any) -> Any:
        parts = [*args, *(kwargs[name] for name in sorted(kwargs))]
        key = " ".join(p.model_dump_json() if isinstance(p, Value) else repr(p) for p in parts)
        if key not in known:
            known[key] = function(*args, **kwargs)
        return known[key]

    return call


@pytest.fixture(scope="package", autouse=True)
def _bounds_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (admit, "capacity_rps"),
            (baselines, "clairvoyant_bound"),
            (baselines, "static_peak"),
        ):
            patch.setattr(module, name, remembered(getattr(module, name)))
        yield
