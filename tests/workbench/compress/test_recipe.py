"""Recipes: steps as data, made once, made again when what they go on from changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import __file__ as experiments_file
from serving.errors import InputError
from serving.plan import Variant
from workbench.compress import machine
from workbench.compress.distil import snapshot_folder
from workbench.compress.learning import learning_curves
from workbench.compress.recipe import (
    Recipe,
    card,
    check,
    is_snapshot,
    lineage,
    make,
    read_recipes,
    recipes_of,
    snapshots_of,
)
from workbench.compress.steps import Distil, Prune, Quantize, Sparsify, parse_step


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("int8-gptq", Quantize(scheme="int8-gptq")),
        ("int4-awq:calibration_sequences=8", Quantize(scheme="int4-awq", calibration_sequences=8)),
        ("prune:layers=1,mlp_width=512", Prune(layers=1, mlp_width=512)),
        ("prune:layers=2,contiguous=true", Prune(layers=2, contiguous=True)),
        ("sparsify:pattern=2:4", Sparsify(pattern="2:4")),
        (
            "distil:tokens=1000,config={num_hidden_layers: 2, hidden_size: 128},top_k=64",
            Distil(tokens=1000, config={"num_hidden_layers": 2, "hidden_size": 128}, top_k=64),
        ),
    ],
)
def test_a_step_is_read_from_text(text: str, step: object) -> None:
    assert parse_step(text) == step


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("int3", "int3"),
        ("prune:layers", "'layers', which is no NAME=VALUE"),
        ("prune:layers=-1", r"layers\(=-1\)|layers\(='-1'\)"),
        ("prune:depth=1", "depth"),
        ("distil:config={a", "config={a"),
        ("quantize:scheme=int3", "int8-gptq"),
    ],
)
def test_a_step_that_cannot_be_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_step(text)


def test_recipes_may_begin_with_one_another() -> None:
    one, two, three = recipes_of(
        {
            "pruned": "prune:layers=1",
            "taught": ["pruned", "distil:tokens=1000", {"step": "quantize", "scheme": "fp16"}],
            "both": ["prune:layers=1", "int8-gptq"],
        },
        "here",
    )
    assert (one.begins_with, two.begins_with, three.begins_with) == (None, "pruned", None)
    assert two.names() == ["taught.1-distilled", "taught"]
    assert three.names() == ["both.1-pruned", "both"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1, 2]", "no mapping of names to steps"),
        ("a: prune:layers=x", "layers"),
        ("Big: fp16", "name"),
        ("a: [", "cannot read"),
    ],
)
def test_a_file_that_holds_no_recipes_is_refused(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "recipes.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=says):
        read_recipes(path)


def test_what_a_machine_cannot_serve_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "_gpu", lambda: None)
    fine, fp8 = recipes_of({"a": "int8-gptq", "b": ["prune:layers=1", "fp8"]}, "here")
    check([fine])
    with pytest.raises(InputError, match=r"scheme\(='fp8'\) cannot run on this machine"):
        check([fine, fp8])


def root(tiny: Path) -> Variant:
    return Variant(name="bf16", model=str(tiny))


def made_in(folder: Path) -> Callable[[str], int]:
    """When the weights of a variant were written."""
    return lambda name: (folder / name / "model.safetensors").stat().st_mtime_ns


def test_steps_are_made_once_and_again_when_their_parent_changes(
    tiny: Path, tmp_path: Path
) -> None:
    def run(layers: int) -> list[Variant]:
        recipes = recipes_of(
            {
                "pruned": f"prune:layers={layers},calibration_sequences=8",
                "half": ["pruned", "fp16"],
                "other": "fp32",
            },
            "here",
        )
        return make(recipes, root(tiny), tmp_path)

    at = made_in(tmp_path)
    first = run(1)
    before = {name: at(name) for name in ("pruned", "half", "other")}
    assert [v.name for v in first] == ["pruned", "half", "other"]
    assert run(1) == first
    assert {name: at(name) for name in before} == before
    again = run(0)
    # The recipe of `half` is what it was, but it goes on from another model now.
    assert {name for name in before if at(name) != before[name]} == {"pruned", "half"}
    assert again[1].size_bytes > first[1].size_bytes
    assert again[2] == first[2]


def test_a_card_says_how_it_was_made(tiny: Path, tmp_path: Path) -> None:
    (recipe,) = recipes_of(
        {"small": ["prune:layers=1,mlp_width=128,calibration_sequences=8", "fp32"]}, "here"
    )
    told: list[tuple[str, float]] = []
    pruned, small = make(
        [recipe], root(tiny), tmp_path, on_progress=lambda doing, share: told.append((doing, share))
    )
    assert card(tmp_path / "small") == small
    assert (pruned.name, pruned.parent, small.parent) == ("small.1-pruned", "bf16", pruned.name)
    assert pruned.parameters["mlp_width"] == 128
    assert small.method == "fp32"
    assert small.engine == {"dtype": "float32"}
    assert small.made_with["torch"]
    assert small.made_with["hardware"]
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert told[0][0].startswith("small.1-pruned: ")
    assert card(tmp_path / "nowhere") is None


def test_the_lineage_is_a_tree_with_children_behind_their_parents() -> None:
    def variant(name: str, parent: str | None) -> Variant:
        return Variant(name=name, model=name, parent=parent)

    tree = lineage(
        [
            variant("bf16", None),
            variant("pruned", "bf16"),
            variant("int8", "bf16"),
            variant("taught", "pruned"),
            variant("lost", "gone"),
        ]
    )
    assert [(depth, v.name) for depth, v in tree] == [
        (0, "bf16"),
        (1, "pruned"),
        (2, "taught"),
        (1, "int8"),
        (0, "lost"),
    ]


def test_students_on_the_way_are_variants(tmp_path: Path) -> None:
    student = Variant(
        name="taught",
        model=str(tmp_path / "taught"),
        method="distil",
        parameters={"tokens": 4000, "snapshots": 2},
        parent="pruned",
    )
    for tokens in (2000, 1000):
        young = snapshot_folder(tmp_path / "taught") / str(tokens)
        young.mkdir(parents=True)
        (young / "config.json").write_text("{}")
    first, second = snapshots_of(student)
    assert (first.name, first.parent) == ("taught.at-1000", "pruned")
    assert second.parameters["tokens"] == 2000
    assert is_snapshot(first)
    assert not is_snapshot(student)
    # Their own card is found, as long as it is of the same student.
    judged = second.model_copy(update={"notes": ("read",)})
    judged.write(Path(second.model) / "card.json")
    assert snapshots_of(student)[1].notes == ()
    assert snapshots_of(student.model_copy(update={"parameters": {"tokens": 4000}})) == []
    assert learning_curves([student, first]).empty


def test_shipped_recipes_can_be_read() -> None:
    import yaml

    folder = Path(experiments_file).parent
    for path in sorted(folder.glob("payoff*.yaml")):
        found = recipes_of(yaml.safe_load(path.read_text())["recipes"], path.name)
        assert len(found) > 10
        assert all(isinstance(recipe, Recipe) for recipe in found)
