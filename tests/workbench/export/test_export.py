"""Bundles: the same bytes twice, whole or not at all, and a check that notices every change."""

from __future__ import annotations

import shutil
import subprocess
from math import isnan, nan
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.errors import BundleError
from serving.hpa import HpaSpec
from serving.plan import Plan, Quality, Variant
from serving.values import Estimate
from workbench.export import Evidence, check, export

from .bundles import contents, evidence, list_again, plan, prediction

KUSTOMIZATION = "kubernetes/kustomization.yaml"
DIGEST = "sha256:" + "0123456789abcdef" * 4


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    # Wherever the model lies, and wherever the bundle goes.
    copied = shutil.copytree(plan().variant.model, tmp_path / "elsewhere")
    one = export(plan(), tmp_path / "one", evidence=evidence())
    moved = plan(variant=Variant(name="bf16", model=str(copied)))
    two = export(moved, tmp_path / "two", evidence=evidence())
    assert contents(one) == contents(two)
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=one)
    assert done.returncode == 0


def test_the_bundle_stands_alone(tmp_path: Path) -> None:
    bundle = export(plan(), tmp_path / "bundle", evidence=evidence())
    weights = Path(plan().variant.model) / "model.safetensors"
    assert (bundle / "model" / "model.safetensors").read_bytes() == weights.read_bytes()
    shipped = check(bundle)
    assert shipped.variant.model == "model"
    assert shipped == plan(variant=Variant(name="bf16", model="model"))
    assert HpaSpec.from_yaml((bundle / "kubernetes" / "hpa.yaml").read_text()) == plan().hpa
    outside = [str(tmp_path), plan().variant.model]
    for path, content in contents(bundle).items():
        assert not any(place.encode() in content for place in outside), path


def test_a_local_model_with_a_revision_is_still_the_one_in_the_bundle(tmp_path: Path) -> None:
    here = Variant(name="bf16", model=plan().variant.model, revision="main")
    bundle = export(plan(variant=here), tmp_path / "bundle", evidence=evidence())
    assert check(bundle).variant.revision is None
    assert "--revision" not in (bundle / "serve.json").read_text()


@pytest.mark.parametrize("path", ["kubernetes/hpa.yaml", "plan.json", "model/config.json"])
def test_every_change_is_noticed(tmp_path: Path, path: str) -> None:
    bundle = export(plan(), tmp_path / "bundle", evidence=evidence())
    (bundle / path).write_text("changed")
    with pytest.raises(BundleError, match=f"{path} is changed"):
        check(bundle)
    (bundle / path).unlink()
    with pytest.raises(BundleError, match=f"{path} is missing"):
        check(bundle)
    export(plan(), bundle, evidence=evidence())
    (bundle / "model" / "SHA256SUMS").write_text("")
    with pytest.raises(BundleError, match="model/SHA256SUMS is new"):
        check(bundle)


def test_a_list_that_is_no_list_is_noticed(tmp_path: Path) -> None:
    bundle = export(plan(), tmp_path / "bundle", evidence=evidence())
    (bundle / "SHA256SUMS").write_text("nonsense\n")
    with pytest.raises(BundleError, match="SHA256SUMS is changed"):
        check(bundle)
    with pytest.raises(BundleError, match="is not a bundle"):
        check(tmp_path)


def test_what_a_newer_version_wrote_is_refused_by_name(tmp_path: Path) -> None:
    bundle = export(plan(), tmp_path / "bundle", evidence=evidence())
    text = (bundle / "plan.json").read_text()
    (bundle / "plan.json").write_text(text.replace('"schema_version": 1', '"schema_version": 2'))
    list_again(bundle)
    with pytest.raises(BundleError, match=r"plan\.json .*schema_version\(=2\)"):
        check(bundle)


def test_ops_may_pin_the_image_and_change_nothing_else(tmp_path: Path) -> None:
    bundle = export(plan(), tmp_path / "bundle", evidence=evidence())
    path = bundle / KUSTOMIZATION
    found = yaml.safe_load(path.read_text())
    found["images"][0]["digest"] = DIGEST
    path.write_text(yaml.safe_dump(found))
    assert check(bundle) == check(export(plan(), tmp_path / "again", evidence=evidence()))
    found["images"][0]["digest"] = "latest"
    path.write_text(yaml.safe_dump(found))
    with pytest.raises(BundleError, match="pins nothing"):
        check(bundle)


def test_a_pinned_image_is_in_every_file_that_needs_one(tmp_path: Path) -> None:
    image = f"registry.example/vllm@{DIGEST}"
    bundle = export(plan(), tmp_path / "bundle", evidence=evidence(), image=image)
    check(bundle)
    assert yaml.safe_load((bundle / "compose.yaml").read_text())["services"]["vllm"]["image"] == (
        image
    )
    assert DIGEST in (bundle / KUSTOMIZATION).read_text()


# -- whole or not at all -----------------------------------------------------------------------


def test_an_older_bundle_is_replaced(tmp_path: Path) -> None:
    bundle = export(plan(), tmp_path / "bundle", evidence=evidence())
    static = plan(hpa=None, replicas=2)
    assert export(static, bundle, evidence=evidence()) == bundle
    assert check(bundle).replicas == 2
    assert not (bundle / "kubernetes" / "hpa.yaml").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_bundle_can_be_exported_again_onto_itself(tmp_path: Path) -> None:
    bundle = export(plan(), tmp_path / "bundle", evidence=evidence())
    before = contents(bundle)
    shipped = check(bundle)
    variant = shipped.variant.model_copy(update={"model": str(bundle / "model")})
    export(shipped.model_copy(update={"variant": variant}), bundle, evidence=evidence())
    assert contents(bundle) == before


def test_a_crash_leaves_the_older_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = export(plan(), tmp_path / "bundle", evidence=evidence())
    before = contents(bundle)

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(OSError, match="no space"):
        export(plan(hpa=None, replicas=2), bundle, evidence=evidence())
    assert contents(bundle) == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_is_not_a_bundle_is_left_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter").write_text("dear")
    # A list of sums alone makes no bundle: downloads have one too.
    for extra in ("letter", "SHA256SUMS"):
        (home / extra).write_text("dear")
        with pytest.raises(BundleError, match="is not a bundle"):
            export(plan(), home, evidence=evidence())
        assert (home / "letter").read_text() == "dear"
    with pytest.raises(BundleError, match="is not a bundle"):
        export(plan(), home / "letter", evidence=evidence())
    bundle = export(plan(), tmp_path / "bundle", evidence=evidence())
    (bundle / "overlay.yaml").write_text("mine")
    with pytest.raises(BundleError, match=r"overlay\.yaml is not of the bundle"):
        export(plan(), bundle, evidence=evidence())
    assert (bundle / "overlay.yaml").read_text() == "mine"


def test_what_is_not_pinned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not pinned by digest"):
        export(plan(), tmp_path / "out", evidence=evidence(), image="vllm/vllm-openai:latest")
    hub = Variant(name="hub", model="org/model")
    with pytest.raises(BundleError, match="has no revision"):
        export(plan(variant=hub), tmp_path / "out", evidence=evidence())
    assert not (tmp_path / "out").exists()
    pinned = hub.model_copy(update={"revision": "abc"})
    bundle = export(plan(variant=pinned), tmp_path / "out", evidence=evidence())
    assert check(bundle) == plan(variant=pinned)
    assert not (bundle / "model").exists()


def test_folders_that_cannot_be_the_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = Variant(name="empty", model=str(tmp_path / "empty"))
    with pytest.raises(BundleError, match=r"no config\.json"):
        export(plan(variant=empty), tmp_path / "out", evidence=evidence())
    own = shutil.copytree(plan().variant.model, tmp_path / "own")
    with pytest.raises(BundleError, match="lies in the model"):
        export(plan(variant=Variant(name="own", model=str(own))), own / "out", evidence=evidence())
    assert not (own / "out").exists()


# -- evidence ----------------------------------------------------------------------------------


def judged() -> Plan:
    one = Estimate(value=0.97, low=0.95, high=0.99, n=500)
    quality = Quality(
        perplexity=one,
        perplexity_ratio=one,
        agreement=one,
        kl_nats=one,
        task_accuracy=one,
        recovery=one,
        judged_on="500 questions",
    )
    return plan(variant=plan().variant.model_copy(update={"quality": quality}))


def test_the_evidence_says_what_it_must_not_rest_on(tmp_path: Path) -> None:
    told = prediction().model_copy(update={"doubts": ("rate8: the client sent late",)})
    bundle = export(plan(), tmp_path / "bundle", evidence=evidence(told))
    page = (bundle / "EVIDENCE.md").read_text()
    assert "**Rests on what cannot be trusted.** rate8: the client sent late" in page
    assert Evidence.read(bundle / "evidence.json").prediction.doubts == told.doubts
    trusted = export(plan(), tmp_path / "trusted", evidence=evidence())
    assert "trusted" not in (trusted / "EVIDENCE.md").read_text()


def test_the_evidence_says_what_was_measured_and_predicted(tmp_path: Path) -> None:
    known = evidence(
        hardware="One GPU",
        measurements={"rate-6": {"output_tokens_per_s": 96.5, "tpot_p50_s": nan}},
        fleets=[{"name": "static-peak", "gpu_hours": 48.0, "cost_usd": None}],
        fit_errors={"step_time": Estimate(value=0.031, low=0.02, high=0.04, n=9)},
        mlflow_run_ids=("run-1", "run-2"),
    )
    bundle = export(judged(), tmp_path / "bundle", evidence=known)
    page = (bundle / "EVIDENCE.md").read_text()
    for said in ("One GPU", "vllm 0", "run-1, run-2", "| static-peak | 48 | - |", "0.031 ["):
        assert said in page
    assert "| rate-6 | 96.5 |" in page
    assert "| task_accuracy | 0.97 [0.95, 0.99] |" in page
    assert "Judged through vLLM on 500 questions." in page
    assert "At most 2.0% of the score may be lost: loses." in page
    for metric, estimate in known.prediction.metrics.items():
        assert f"| {metric} | {estimate} |" in page
    # JSON has no NaN: what was not observed comes back as not observed.
    check(bundle)
    again = Evidence.read(bundle / "evidence.json")
    assert isnan(again.measurements["rate-6"]["tpot_p50_s"])
    assert again.fleets == known.fleets
    assert again.prediction == known.prediction
