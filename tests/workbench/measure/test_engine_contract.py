"""One suite over everything that stands behind the Engine seam."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from serving.errors import EngineError
from serving.plan import Variant
from workbench.measure import Engine, FakeEngine, OfflineEngine, Request, Run, ServerEngine

from .support import ENGINE

ENGINES = [
    "fake",
    pytest.param("offline", marks=pytest.mark.vllm),
    pytest.param("server", marks=pytest.mark.vllm),
]


def make(kind: str, variant: Variant, folder: Path) -> Engine:
    if kind == "fake":
        return FakeEngine(variant, ENGINE)
    if kind == "offline":
        # The twin's compiler is loaded where the pipeline runs, and vLLM's start stumbles on it.
        import numba  # noqa: F401

        return OfflineEngine(variant, ENGINE)
    return ServerEngine(variant, ENGINE, folder=folder)


@pytest.fixture(scope="module", params=ENGINES)
def engine(
    request: pytest.FixtureRequest, real_variant: Variant, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    before = set(psutil.Process().children(recursive=True))
    with make(request.param, real_variant, tmp_path_factory.mktemp("engine")) as started:
        yield started
    started.__exit__(None, None, None)  # closing twice is fine
    left = set(psutil.Process().children(recursive=True)) - before
    # Python's own helper of multiprocessing lives as long as the interpreter.
    assert not {p for p in left if "resource_tracker" not in " ".join(p.cmdline())}
    with pytest.raises(EngineError, match="not running"):
        started.run([Request(0.0, [5], 1)])


def requests(n: int, gap_s: float, prompt: int = 20, output: int = 6) -> list[Request]:
    rng = np.random.default_rng(n)
    return [
        Request(i * gap_s, rng.integers(4, 1000, prompt + i % 3).tolist(), output + i % 4)
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def open_run(engine: Engine) -> Run:
    engine.run(requests(3, 0.0))  # not measured: what is done only once
    return engine.run(requests(30, 0.02))


def test_every_request_comes_back_with_the_tokens_asked_for(open_run: Run) -> None:
    table = open_run.requests
    assert table["error"].isna().all()
    assert list(table["request_id"]) == list(range(30))
    assert (table["output_tokens"] == table["asked_output_tokens"]).all()
    assert list(table["prompt_tokens"]) == [len(r.prompt_token_ids) for r in requests(30, 0.02)]
    assert not open_run.doubts


def test_times_are_ordered(open_run: Run) -> None:
    table = open_run.requests
    assert (table["scheduled_s"] <= table["sent_s"]).all()
    assert (table["sent_s"] < table["first_token_s"]).all()
    assert (table["first_token_s"] <= table["end_s"]).all()


def test_token_gaps_add_up_from_the_first_token_to_the_end(open_run: Run) -> None:
    table = open_run.requests
    assert np.allclose(table["itl_s"].map(sum), table["end_s"] - table["first_token_s"])
    # A chunk may carry several tokens, never less than one.
    assert (table["itl_s"].map(len) <= table["output_tokens"] - 1).all()


def test_steps_account_for_every_token(open_run: Run) -> None:
    steps, table = open_run.steps, open_run.requests
    # A prefill gives the first token, each decoding sequence one more.
    assert steps["decode_seqs"].sum() + len(table) == table["output_tokens"].sum()
    assert steps["prefill_tokens"].sum() == table["prompt_tokens"].sum()
    assert ((steps["prefill_tokens"] > 0) | (steps["decode_seqs"] > 0)).all()


def test_steps_follow_one_another(open_run: Run) -> None:
    steps = open_run.steps
    begins_s = (steps["t_s"] - steps["step_s"]).to_numpy()
    assert (steps["step_s"] > 0).all()
    assert (begins_s[1:] >= steps["t_s"].to_numpy()[:-1] - 1e-9).all()
    gaps = steps["gap_s"].dropna()
    assert (gaps >= 0).all()
    assert np.isnan(steps["gap_s"].iloc[0])


def test_a_first_token_comes_after_the_step_that_made_it(engine: Engine) -> None:
    run = engine.run([Request(0.05, list(range(5, 45)), 4)])
    request, steps = run.requests.iloc[0], run.steps
    prefill = steps[steps["prefill_tokens"] > 0].iloc[-1]
    assert request["first_token_s"] >= prefill["t_s"] - 1e-9
    assert prefill["t_s"] - prefill["step_s"] >= request["sent_s"] - 1e-6


def test_a_single_token_ends_with_its_first_token(engine: Engine) -> None:
    request = engine.run([Request(0.0, [7, 8, 9], 1)]).requests.iloc[0]
    assert request["first_token_s"] == request["end_s"]
    assert len(request["itl_s"]) == 0


def test_cache_holds_the_prompt_and_what_was_generated(engine: Engine) -> None:
    run = engine.run([Request(0.0, list(range(10, 60)), 5)])
    assert list(run.steps["kv_tokens"]) == [50, 51, 52, 53, 54]


def test_a_prompt_too_long_is_a_row_with_an_error(engine: Engine) -> None:
    long = Request(0.0, [5] * (ENGINE.max_model_len + 1), 4)
    table = engine.run([long, *requests(2, 0.0)]).requests
    assert table["error"].isna().tolist() == [False, True, True]
    assert str(ENGINE.max_model_len) in table["error"].iloc[0]
    assert np.isnan(table["first_token_s"].iloc[0])


def test_a_closed_loop_keeps_its_concurrency(engine: Engine) -> None:
    run = engine.run(requests(10, 0.0), concurrency=3)
    table = run.requests
    in_flight = [
        ((table["sent_s"] <= t) & (table["end_s"] > t)).sum() for t in table["sent_s"] + 1e-9
    ]
    assert max(in_flight) == 3
    assert np.allclose(table["scheduled_s"], table["sent_s"], atol=1e-3)


def test_progress_reaches_the_end(engine: Engine) -> None:
    said: list[tuple[str, float]] = []
    engine.run(requests(4, 0.0), on_progress=lambda doing, share: said.append((doing, share)))
    assert all(0 <= share <= 1 for _, share in said)
    assert said[-1] == ("4 of 4 requests answered", 1.0)
