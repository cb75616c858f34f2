"""Starts of a server, each kept once and told in the parts that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import pytest

from experiments import cold_start
from serving.plan import EngineArgs, Variant
from workbench.measure.coldstart import ColdStartParts
from workbench.measure.engine import ReplicaInfo

PARTS = ColdStartParts(
    process_s=20.0, engine_process_s=30.0, load_s=5.0, compile_s=25.0, capture_s=4.0, warmup_s=6.0,
    server_s=3.0, first_token_s=0.5,
)  # fmt: skip
STARTED: list[tuple[bool, bool]] = []
"""Of each start: eager, and whether something lay in its compile cache."""


class StartedServer:
    """Says how it was started, and that it took PARTS."""

    def __init__(
        self, variant: Variant, engine: EngineArgs, *, folder: Path, environment: Mapping[str, str]
    ) -> None:
        cache = Path(environment["VLLM_CACHE_ROOT"])
        STARTED.append((engine.enforce_eager, cache.exists()))
        cache.mkdir(exist_ok=True)
        (cache / "kernel").write_bytes(b"compiled")
        self.replica = ReplicaInfo(
            engine_version="0", kv_blocks=1, block_size_tokens=16, start_s=93.0, cold_start=PARTS
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    STARTED.clear()
    monkeypatch.setattr(cold_start, "ServerEngine", StartedServer)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"w" * 100)
    return folder


def starts(checkpoint: Path, folder: Path, caches: Path) -> list[cold_start.Start]:
    variant = Variant(name="bf16", model=str(checkpoint))
    return list(cold_start.measure_starts(variant, EngineArgs(), folder, caches))


def test_every_case_is_started_once_and_only_the_first_without_a_compile_cache(
    checkpoint: Path, tmp_path: Path
) -> None:
    found = starts(checkpoint, tmp_path / "found", tmp_path / "caches")
    assert [(one.compiled == "eager", one.compiled != "new") for one in found] == STARTED
    assert [one.name for one in found] == [name for name, *_ in cold_start.CASES]
    assert {one.checkpoint_bytes for one in found} == {100}
    assert found[0].compile_cache_bytes == len(b"compiled")
    assert cold_start.read_starts(tmp_path / "found") == found
    assert starts(checkpoint, tmp_path / "found", tmp_path / "caches") == found
    assert len(STARTED) == len(found), "a start that lies there was done again"


def test_what_is_left_after_a_crash_finds_the_compile_cache(
    checkpoint: Path, tmp_path: Path
) -> None:
    starts(checkpoint, tmp_path / "found", tmp_path / "caches")
    (tmp_path / "found" / "compile-cache-saved.json").unlink()
    starts(checkpoint, tmp_path / "found", tmp_path / "caches")
    assert STARTED[len(cold_start.CASES) :] == [(False, True)]


def test_parts_sum_to_the_whole(checkpoint: Path, tmp_path: Path) -> None:
    found = starts(checkpoint, tmp_path / "found", tmp_path / "caches")
    table = cold_start.table(found)
    assert table.drop(columns=["start", "total"]).sum(axis=1).tolist() == table["total"].tolist()
    assert table["warm-up, CUDA graphs"].tolist() == [10.0] * len(found)
    drawn = cold_start.figure(found)
    assert sum(bar.x[0] for bar in drawn.data) == PARTS.total_s
    assert "eager: 94 s (+0%)" in cold_start.answer(found)
