"""The payoff map: speeds that are known, so that ratios, crossovers, front and words are as well."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments import __file__ as experiments_file
from serving.errors import InputError
from serving.plan import Variant
from serving.values import Estimate
from simulations.traffic import ClosedLoop
from tests.workbench.conftest import measurement, variant, workload
from workbench.compress.learning import learning_curves
from workbench.measure import Measurement
from workbench.measure.study import Study, StudyResult
from workbench.payoff import Payoff, Question
from workbench.report.lineage_figures import lineage_figure, recovery_by_tokens
from workbench.report.payoff_figures import payoff_page

H100 = Path(experiments_file).parent / "results" / "h100" / "payoff-8b"
SPEEDS = {
    "parent": {1: 100.0, 32: 1000.0},
    "int8": {1: 130.0, 32: 1300.0},
    "w4a16": {1: 160.0, 32: 900.0},
    "pruned": {1: 115.0, 32: 1150.0},
}
NOISE = (0.99, 1.0, 1.01)
STUDY = Study(name="known", question="What pays?", concurrency=(1, 32), lengths=((64, 64),))


def point(name: str, batch: int, repeat: int, tokens_per_s: float) -> Measurement:
    """All requests at once, done when this speed has made their tokens."""
    load = workload(ClosedLoop(concurrency=batch, requests=batch), seed=repeat)
    made = measurement(name, load, "offline", repeat)
    requests = made.requests.assign(
        scheduled_s=0.0, sent_s=0.0, first_token_s=0.01, end_s=64 * batch / tokens_per_s
    )
    return replace(made, requests=requests)


def result(repeats: int = 3, names: tuple[str, ...] = tuple(SPEEDS)) -> StudyResult:
    points = [
        # The machine is slower or faster in a repeat, for all alike; each has a little of its own.
        point(name, batch, repeat, speed * (1 + repeat / 10) * NOISE[(repeat + at) % 3])
        for at, name in enumerate(names)
        for batch, speed in SPEEDS[name].items()
        for repeat in range(repeats)
    ]
    return StudyResult(STUDY, points, [])


def variants() -> list[Variant]:
    return [variant(name) for name in SPEEDS]


@pytest.fixture(scope="module")
def payoff() -> Payoff:
    return Payoff.of(result(), variants())


def row(payoff: Payoff, name: str, batch: int) -> pd.Series:
    at = payoff.at(batch, 64, 64)
    return at[at["variant"] == name].iloc[0]


def test_a_speedup_is_a_paired_ratio(payoff: Payoff) -> None:
    for name, speeds in SPEEDS.items():
        for batch, speed in speeds.items():
            found = row(payoff, name, batch)
            assert found["speedup"] == pytest.approx(speed / SPEEDS["parent"][batch], rel=0.01)
            assert found["low"] <= found["speedup"] <= found["high"]
            assert found["repeats"] == 3
    # Repeats differ by a fifth, their ratios do not.
    int8 = row(payoff, "int8", 1)
    assert (int8["high"] - int8["low"]) / int8["speedup"] < 0.1
    assert (row(payoff, "parent", 1)["low"], row(payoff, "parent", 1)["high"]) == (1, 1)


def test_cost_and_memory_stand_beside_the_speed(payoff: Payoff) -> None:
    found = row(payoff, "int8", 32)
    assert found["weights_mib"] == pytest.approx(variant("int8").size_mib)
    assert found["kv_capacity_tokens"] == 8192 * 16
    assert found["ttft_p50_s"] == pytest.approx(0.01)
    assert found["recovery"] == variant("int8").quality.recovery.value  # type: ignore[union-attr]


def test_the_front_is_what_nothing_beats(payoff: Payoff) -> None:
    assert payoff.front(1, 64, 64)["variant"].tolist() == ["w4a16", "int8", "parent"]
    assert payoff.front(32, 64, 64)["variant"].tolist() == ["int8", "parent"]


def test_crossovers_are_where_the_order_changes(payoff: Payoff) -> None:
    found = payoff.crossovers()
    pairs = {(row["first"], row["then"]): row for row in found.to_dict("records")}
    assert set(pairs) == {("w4a16", "parent"), ("w4a16", "int8"), ("w4a16", "pruned")}
    assert pairs["w4a16", "int8"]["ahead_by"] == pytest.approx(160 / 130, rel=0.02)
    assert pairs["w4a16", "int8"]["behind_by"] == pytest.approx(900 / 1300, rel=0.02)
    assert (pairs["w4a16", "parent"]["from_batch"], pairs["w4a16", "parent"]["to_batch"]) == (1, 32)


def test_what_one_repeat_cannot_tell_is_no_crossover() -> None:
    once = Payoff.of(result(repeats=1), variants())
    assert once.crossovers().empty
    assert once.table["low"].isna().all()
    assert "No variant overtakes another" in once.words()


def test_the_words_are_made_from_the_numbers(payoff: Payoff) -> None:
    said = payoff.words()
    # w4a16 is faster and loses too much.
    assert "at batch 1 with 64 tokens in and 64 out int8 is fastest, 1.3" in said
    assert "w4a16 is ahead of parent at batch 1 (1.6" in said
    assert "These do not keep the quality that is asked for: w4a16 (91.9 % of" in said
    strict = replace(payoff, max_quality_loss=0.0)
    assert strict.words() == said  # verdicts are made with the table
    unjudged = [v.model_copy(update={"quality": None}) for v in variants()]
    silent = Payoff.of(result(), unjudged)
    assert silent.words().startswith("By speed alone, unjudged: ")
    assert "w4a16 is fastest" in silent.words()
    assert silent.front(1, 64, 64).empty


def test_the_claim_is_a_ratio_of_any_two(payoff: Payoff) -> None:
    assert payoff.claim() is None
    found = payoff.claim("parent", "int8")
    assert found is not None
    assert found["size_ratio"] == pytest.approx(1.35, rel=0.01)
    assert found["speed"]["speedup"].tolist() == pytest.approx([1.3, 1.3], rel=0.01)


def test_points_that_cannot_be_trusted_are_left_out() -> None:
    found = result()
    points = [
        replace(m, invalid=("late",)) if m.variant.name == "int8" else m for m in found.measurements
    ]
    payoff = Payoff.of(replace(found, measurements=points), variants())
    assert "int8" not in set(payoff.table["variant"])
    with pytest.raises(InputError, match=r"no closed loop of the parent\(='parent'\)"):
        Payoff.of(result(names=("int8",)), variants())
    with pytest.raises(InputError, match="no closed loop"):
        Payoff.of(StudyResult(STUDY, [], []), variants())


def test_the_page_shows_every_figure_and_needs_nothing_else(payoff: Payoff, tmp_path: Path) -> None:
    # Quality by speed at both ends of the load, and speed over the load.
    titles = [figure.layout.title.text for figure in payoff.plot()]
    assert [title.split(",")[0] for title in titles] == [
        "Quality by speed",
        "Quality by speed",
        "Speed-up by batch size",
    ]
    page = payoff_page(payoff, result(), tmp_path / "page.html")
    text = page.read_text()
    for said in ("What pays?", payoff.words()[:60], "└ int8", "How the variants were made", "EPYC"):
        assert said in text
    assert 'src="http' not in text


def test_the_lineage_is_drawn_line_by_line() -> None:
    figure = lineage_figure(variants(), 0.02)
    drawn = {trace.name: trace for trace in figure.data if trace.mode == "markers+text"}
    assert set(drawn) == {"keeps", "loses"}
    assert len(drawn["keeps"].x) == 2
    assert any("<b>w4a16</b>" in text and "91.9 %" in text for text in drawn["loses"].text)
    assert sum(trace.mode == "lines" for trace in figure.data) == 3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_on_a_phone_nothing_is_cut_off(
    payoff: Payoff, tmp_path: Path, cut_off: Callable[[Any], list[str]]
) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    page = payoff_page(payoff, result(), tmp_path / "page.html")
    with sync_api.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        shown = browser.new_page(viewport={"width": 390, "height": 800})
        shown.goto(page.as_uri())
        shown.locator(".main-svg").last.wait_for(state="attached", timeout=60_000)
        assert cut_off(shown) == []
        browser.close()


def taught(name: str, tokens: int, perplexity: float) -> Variant:
    ratio = Estimate(value=perplexity, low=perplexity - 0.01, high=perplexity + 0.01, n=9)
    like = variant("pruned")
    assert like.quality is not None
    quality = like.quality.model_copy(update={"perplexity_ratio": ratio})
    return like.model_copy(
        update={
            "name": name,
            "method": "distil",
            "parent": "pruned",
            "parameters": {"tokens": tokens},
            "quality": quality,
        }
    )


def test_learning_begins_with_the_pruned_parent() -> None:
    family = [
        *variants(),
        taught("student", 4000, 1.05),
        taught("student.at-1000", 1000, 1.3),
        taught("student.at-2000", 2000, 1.2),
    ]
    curve = learning_curves(family)
    assert curve["student"].unique().tolist() == ["student"]
    assert curve.sort_values("tokens")["tokens"].tolist() == [0, 1000, 2000, 4000]
    figure = recovery_by_tokens(family)
    assert figure is not None
    assert list(figure.data[0].x) == curve["tokens"].tolist() == [0, 1000, 2000, 4000]
    assert recovery_by_tokens(variants()) is None
    points = [
        replace(m, variant=v) for v in family[:5] for m in result(names=("parent",)).measurements
    ]
    said = Payoff.of(replace(result(), measurements=points), family).words()
    assert "Distillation: student goes from" in said
    assert "1.05 times in 4,000 tokens" in said


def test_the_map_is_written_as_files(payoff: Payoff, tmp_path: Path) -> None:
    payoff.write(tmp_path / "map")
    table = pd.read_parquet(tmp_path / "map" / "payoff.parquet")
    pd.testing.assert_frame_equal(table, payoff.table)
    assert (tmp_path / "map" / "payoff.md").read_text().strip() == payoff.words()
    assert len(pd.read_csv(tmp_path / "map" / "crossovers.csv")) == 3


def test_the_h100_answers_the_usual_claim() -> None:
    """FP32 to INT8, four times smaller and two to three times faster: on Llama-3-8B's shape."""
    payoff = Payoff.read(H100, usd_per_hour=2.5)
    claim = payoff.claim()
    assert claim is not None
    # The embeddings keep their type, so not quite four times.
    assert 3.5 < claim["size_ratio"] < 4
    speed = claim["speed"].set_index(["prompt_tokens", "batch"])["speedup"]
    assert 2 < speed[128, 1] < 3
    assert speed[1024, 128] > 10
    assert payoff.table["usd_per_million_tokens"].between(0.05, 10).all()
    assert payoff.table["joules_per_token"].between(0.03, 10).all()
    crossed = payoff.crossovers()
    assert ("int4-gptq", "int8-gptq") in set(zip(crossed["first"], crossed["then"], strict=True))
    assert not (payoff.table["quality"] != "not judged").any()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "is no mapping"),
        ("recipes: {a: fp16}", "study"),
        ("recipes: {a: int3}\nstudy: {}", "int3"),
        ("recipes: {}\nstudy: {}", "no mapping of names to steps"),
        ("recipes: [", "cannot read"),
        (
            "recipes: {a: fp16}\nstudy: {name: x, question: y, concurrency: [1]}\nprice: 2",
            "price",
        ),
    ],
)
def test_a_file_that_declares_no_comparison_is_refused(
    tmp_path: Path, content: str, says: str
) -> None:
    path = tmp_path / "payoff.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=says):
        Question.load(path)
    with pytest.raises(InputError, match="cannot read"):
        Question.load(tmp_path / "nothing.yaml")
