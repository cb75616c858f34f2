"""Bundles: the same bytes twice, whole or not at all, and a check that notices every change."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from math import isnan, nan
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from serving.errors import BundleError
from serving.hpa import REQUESTS_RUNNING, Behavior, HpaSpec, ScalingRules, pods_metric
from serving.manifests import Images, images
from serving.plan import Plan, Quality, Variant
from serving.values import Estimate
from simulations.simulate import simulate
from workbench import bundle_evidence
from workbench.bundle_evidence import digest
from workbench.export import Evidence, check, export

from .bundles import LOAD, contents, evidence, latency, list_again, plan, prediction

KUSTOMIZATION, ENVIRONMENT = images.EDITABLE
DIGEST = "sha256:" + "0123456789abcdef" * 4
PINNED = Images(vllm=f"registry.example/vllm@{DIGEST}", python=f"python@{DIGEST}")


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
    assert HpaSpec.from_yaml((bundle / "base/vllm/hpa.yaml").read_text()) == plan().hpa
    outside = [str(tmp_path), plan().variant.model]
    for path, content in contents(bundle).items():
        assert not any(place.encode() in content for place in outside), path


def test_a_local_model_with_a_revision_is_still_the_one_in_the_bundle(tmp_path: Path) -> None:
    here = plan(variant=plan().variant.model_copy(update={"revision": "main"}))
    bundle = export(here, tmp_path / "bundle", evidence=evidence(of=here))
    assert check(bundle).variant.revision is None
    assert "--revision" not in (bundle / "serve.json").read_text()


@pytest.mark.parametrize(
    "path",
    [
        *("base/vllm/hpa.yaml", "plan.json", "model/config.json", "docker/serving/plan.py"),
        *("monitoring/rules.yml", "sbom.json", "base/gateway/settings.json", "bundle.json"),
    ],
)
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
    bundle = export(plan(), tmp_path / "bundle", evidence=evidence(), pinned=PINNED)
    check(bundle)
    assert f"VLLM_IMAGE={PINNED.vllm}\n" in (bundle / ENVIRONMENT).read_text()
    assert DIGEST in (bundle / KUSTOMIZATION).read_text()
    known = images.of_bundle(bundle)
    assert known["vllm"] == known["compose vllm"] == PINNED.vllm
    assert known["gateway"] is None


# -- whole or not at all -----------------------------------------------------------------------


def test_an_older_bundle_is_replaced(tmp_path: Path) -> None:
    bundle = export(plan(), tmp_path / "bundle", evidence=evidence())
    static = plan(hpa=None, replicas=2)
    assert export(static, bundle, evidence=evidence(of=static)) == bundle
    assert check(bundle).replicas == 2
    assert not (bundle / "base/vllm/hpa.yaml").exists()
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
    static = plan(hpa=None, replicas=2)
    with pytest.raises(OSError, match="no space"):
        export(static, bundle, evidence=evidence(of=static))
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
    moving = Images(vllm="vllm/vllm-openai:latest")
    with pytest.raises(BundleError, match="not pinned by digest"):
        export(plan(), tmp_path / "out", evidence=evidence(), pinned=moving)
    hub = plan(variant=Variant(name="hub", model="org/model"))
    with pytest.raises(BundleError, match="has no revision"):
        export(hub, tmp_path / "out", evidence=evidence(of=hub))
    assert not (tmp_path / "out").exists()
    pinned = plan(variant=Variant(name="hub", model="org/model", revision="abc"))
    bundle = export(pinned, tmp_path / "out", evidence=evidence(of=pinned))
    assert check(bundle) == pinned
    assert not (bundle / "model").exists()


def test_a_secret_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    said = "hf_" + "a1B2" * 8
    for changes in ({"hardware": said}, {"fit_source": said}):
        with pytest.raises(BundleError, match="holds a Hugging Face token"):
            export(plan(), tmp_path / "out", evidence=evidence(**changes))
    leaky = plan(variant=plan().variant.model_copy(update={"parameters": {"token": said}}))
    with pytest.raises(BundleError, match="holds a Hugging Face token"):
        export(leaky, tmp_path / "out", evidence=evidence(of=leaky))
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_the_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = plan(variant=Variant(name="empty", model=str(tmp_path / "empty")))
    with pytest.raises(BundleError, match=r"no config\.json"):
        export(empty, tmp_path / "out", evidence=evidence(of=empty))
    copied = shutil.copytree(plan().variant.model, tmp_path / "own")
    own = plan(variant=Variant(name="own", model=str(copied)))
    with pytest.raises(BundleError, match="lies in the model"):
        export(own, copied / "out", evidence=evidence(of=own))
    assert not (copied / "out").exists()


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
    with pytest.raises(BundleError, match="cannot be trusted: rate8: the client sent late"):
        export(plan(), tmp_path / "bundle", evidence=evidence(told))
    bundle = export(plan(), tmp_path / "bundle", evidence=evidence(told), force=True)
    page = (bundle / "EVIDENCE.md").read_text()
    assert "**Rests on what cannot be trusted.** rate8: the client sent late" in page
    assert Evidence.read(bundle / "evidence.json").prediction.doubts == told.doubts
    trusted = export(plan(), tmp_path / "trusted", evidence=evidence())
    assert "trusted" not in (trusted / "EVIDENCE.md").read_text()


def test_the_evidence_says_what_was_measured_and_predicted(tmp_path: Path) -> None:
    known = evidence(
        of=judged(),
        hardware="One GPU",
        measurements={"rate-6": {"output_tokens_per_s": 96.5, "tpot_p50_s": nan}},
        fleets=[{"name": "static-peak", "gpu_hours": 48.0, "cost_usd": None}],
        fit_errors={"step_time": Estimate(value=0.031, low=0.02, high=0.04, n=9)},
        mlflow_run_ids=("run-1", "run-2"),
    )
    bundle = export(judged(), tmp_path / "bundle", evidence=known)
    page = (bundle / "EVIDENCE.md").read_text()
    for said in ("One GPU", "a-server 0", "run-1, run-2", "| static-peak | 48 | - |", "0.031 ["):
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


def test_evidence_of_another_plan_is_refused(tmp_path: Path) -> None:
    static = plan(hpa=None, replicas=2)
    with pytest.raises(BundleError, match="not of 'winner' as it is now"):
        export(plan(), tmp_path / "out", evidence=evidence(of=static), force=True)
    # Where the model lies makes no other plan.
    copied = shutil.copytree(plan().variant.model, tmp_path / "elsewhere")
    moved = plan(variant=plan().variant.model_copy(update={"model": str(copied)}))
    assert digest(moved) == digest(plan())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"measurements": {}}, "holds no measurement"),
        ({"versions": {"a-vllm": "0.1"}}, r"made with a-vllm 0\.1, here is 0\.2"),
    ],
)
def test_evidence_that_proves_nothing_here_is_refused_unless_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], problem: str
) -> None:
    monkeypatch.setattr(bundle_evidence, "_ENGINES", ("a-vllm",))
    monkeypatch.setattr(bundle_evidence.metadata, "version", {"a-vllm": "0.2"}.__getitem__)
    poor = evidence(**changes)
    with pytest.raises(BundleError, match=problem):
        bundle_evidence.doubted(poor, force=False)
    # Said on every page of a bundle that was forced.
    said = bundle_evidence.doubted(poor, force=True).prediction.doubts[-1]
    assert re.search(problem, said)


def test_old_evidence_is_refused(tmp_path: Path) -> None:
    year = (datetime.now(UTC) - timedelta(days=365.5)).isoformat(timespec="seconds")
    old = evidence(measured_at=year)
    with pytest.raises(BundleError, match=r"365 days old, older than max_age_days\(=90\)"):
        export(plan(), tmp_path / "out", evidence=old)
    bundle = export(plan(), tmp_path / "out", evidence=old, max_age_days=400)
    check(bundle)
    with pytest.raises(BundleError, match=r"max_age_days\(=30\)"):
        check(bundle, max_age_days=30)


# -- a change that the sums agree with -----------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "old", "new", "said"),
    [
        ("base/vllm/hpa.yaml", "maxReplicas: 4", "maxReplicas: 40", "not what plan.json gives"),
        ("monitoring/rules.yml", "> 0.5", "> 50", "not what plan.json gives"),
        ("base/gateway/settings.json", '"drain_s": 60', '"drain_s": 0', "plan.json gives"),
        ("docker/serving/gateway/keys.py", "self._anonymous", "True", "plan.json gives"),
        ("plan.json", '"max_error_share": 0.01', '"max_error_share": 0.5', "not of bundle.json"),
        ("prediction.json", '"tolerance_p50": 0.25', '"tolerance_p50": 9', "evidence.json"),
        ("model/config.json", "{", "{ ", "model is not of bundle.json"),
    ],
)
def test_a_change_is_found_though_the_sums_agree(
    tmp_path: Path, path: str, old: str, new: str, said: str
) -> None:
    bundle = export(plan(), tmp_path / "bundle", evidence=evidence())
    text = (bundle / path).read_text()
    assert old in text
    (bundle / path).write_text(text.replace(old, new))
    list_again(bundle)
    with pytest.raises(BundleError, match=re.escape(said)):
        check(bundle)


def test_a_bundle_of_another_version_is_held_to_its_autoscaler(tmp_path: Path) -> None:
    bundle = export(plan(), tmp_path / "bundle", evidence=evidence())
    head = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps(head | {"serving_sha256": "another"}))
    list_again(bundle)
    assert check(bundle).hpa == plan().hpa
    path = bundle / "base/vllm/hpa.yaml"
    path.write_text(path.read_text().replace("maxReplicas: 4", "maxReplicas: 40"))
    list_again(bundle)
    with pytest.raises(BundleError, match=r"hpa\.yaml is not of plan\.json"):
        check(bundle)


# -- what was simulated is what is exported -------------------------------------------------------


def test_the_exported_autoscaler_gives_the_simulated_day_again(tmp_path: Path) -> None:
    tuned = HpaSpec(
        max_replicas=4,
        metrics=(pods_metric(REQUESTS_RUNNING, 0.1),),
        behavior=Behavior(scale_down=ScalingRules(stabilization_window_seconds=60)),
    )
    chosen = plan(hpa=tuned)
    bundle = export(chosen, tmp_path / "bundle", evidence=evidence(of=chosen))
    exported = HpaSpec.from_yaml((bundle / "base/vllm/hpa.yaml").read_text())

    def day(hpa: HpaSpec) -> Any:
        load = LOAD.model_copy(update={"duration_s": 300.0})
        return simulate(plan(hpa=hpa), load, latency(), seeds=(0,), force=True).per_seed

    assert exported == tuned
    pd.testing.assert_frame_equal(day(exported), day(tuned))
    other = tuned.model_copy(update={"metrics": (pods_metric(REQUESTS_RUNNING, 30),)})
    assert not day(other).equals(day(tuned))


# -- the command -----------------------------------------------------------------------------------


def test_the_command_checks_a_bundle(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "workbench.cli", "export", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    bundle = export(plan(), tmp_path / "bundle", evidence=evidence(), pinned=PINNED)
    done = run("--check", "bundle", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["holds"] is True
    assert "gateway" in row["images_to_pin"]
    assert "compose vllm" not in row["images_to_pin"]
    (bundle / "base/vllm/pdb.yaml").unlink()
    done = run("--check", "bundle")
    assert done.returncode == 2
    assert "pdb.yaml is missing. Export the bundle again." in done.stderr
    assert run("--max-age-days", "3").returncode == 2
