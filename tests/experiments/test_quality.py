"""What the committed figures of compression say, and that the words follow from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import quality
from serving.plan import Variant
from workbench.compress.recipe import is_snapshot, lineage


@pytest.fixture(scope="module")
def variants() -> dict[str, Variant]:
    return quality.variants_of(quality.RESULTS)


def test_every_variant_was_judged_on_the_same(variants: dict[str, Variant]) -> None:
    judged = [variant.quality for variant in variants.values()]
    assert all(judged)
    assert len({q.judged_on for q in judged if q}) == len({q.asked for q in judged if q}) == 1
    finals = [variant for variant in variants.values() if not is_snapshot(variant)]
    roots = [variant.name for depth, variant in lineage(finals) if depth == 0]
    assert roots == ["bf16"]


def test_the_teacher_keeps_itself_and_weights_shrink(variants: dict[str, Variant]) -> None:
    rows = quality.table(variants).set_index("variant")
    assert rows.loc["bf16", "perplexity_ratio"] == rows.loc["bf16", "recovery"] == 1
    assert (rows["perplexity_ratio_low"] <= rows["perplexity_ratio"]).all()
    assert (rows["recovery"] <= rows["recovery_high"]).all()
    for share in quality.SHARES:
        left = rows.loc[f"pruned-{share}", "mib"] / rows.loc["bf16", "mib"]
        assert 1 - left == pytest.approx(share / 100, abs=0.02)


def test_the_students_differ_in_how_they_learn_alone(variants: dict[str, Variant]) -> None:
    students = [variants[name] for name in quality.STUDENTS]
    shown = [
        {k: v for k, v in s.parameters.items() if k not in ("config", "label_weight")}
        for s in students
    ]
    assert shown[0] == shown[1] == shown[2]
    assert len({s.size_bytes for s in students}) == 1


def test_the_answers_are_those_of_the_cards(variants: dict[str, Variant]) -> None:
    trained = json.loads((quality.RESULTS / "trained.json").read_text())
    said = quality.answer(variants, trained)
    kept = variants["int8-gptq"].quality
    assert kept is not None
    assert kept.recovery.low > 1 - quality.LOSS
    assert f"INT8 loses less than 1% of the tasks: it keeps {kept.recovery.value:.1%}" in said
    assert "Without 15 % of its weights" in said
    assert "was not measured" in said
    ordered = sorted(trained.values(), key=lambda card: card["parameters"])
    bits = [card["heldout"]["bits_per_byte"] for card in ordered]
    assert bits == sorted(bits, reverse=True)  # the text does tell larger models from smaller ones
    assert len({card["tokens_seen"] for card in ordered}) == 1


def test_an_int8_that_loses_is_said_to(variants: dict[str, Variant]) -> None:
    worse = variants | {"int8-gptq": variants["pruned-50"].model_copy(update={"name": "int8-gptq"})}
    trained = json.loads((quality.RESULTS / "trained.json").read_text())
    assert quality.answer(worse, trained).startswith("INT8 loses more than 1%")


def test_figures_show_every_student_and_the_speeds_of_the_same_schemes(
    variants: dict[str, Variant],
) -> None:
    tokens, size = quality.figures(variants)
    assert [trace.name for trace in tokens.data] == list(quality.STUDENTS.values())
    assert [len(trace.x) for trace in tokens.data] == [5, 5, 4]  # two begin with a pruned one
    assert sum(len(trace.x) for trace in size.data) == len(quality.table(variants)) - 1
    if quality.SPEEDS.exists():
        found = quality.with_speeds(variants)
        assert set(found.table["variant"]) == {"bf16", "fp32", "int8-gptq", "int4-gptq"}


def test_the_data_are_small_and_hold_no_weights() -> None:
    files = [path for path in Path(quality.RESULTS).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".parquet"}
    assert sum(path.stat().st_size for path in files) < 2_000_000
