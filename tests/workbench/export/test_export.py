"""Bundles: the same bytes twice, whole or not at all, and a check that notices every change."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import BundleError
from serving.hpa import REQUESTS_RUNNING, HpaSpec, pods_metric
from serving.plan import EngineArgs, Plan, Slo, Variant
from serving.values import Estimate
from simulations.engine import predict
from simulations.latency import ColdStart, FittedRange, LatencyModel
from simulations.result import Prediction
from simulations.traffic import Fixed, Poisson, Workload
from workbench.export import Evidence, check, export
from workbench.measure import FakeEngine
from workbench.measure.fake import StepTime
from workbench.model import shipped_checkpoint
from workbench.verify import Verification, verify

LOAD = Workload(
    arrivals=Poisson(rate_rps=6.0),
    prompt_tokens=Fixed(tokens=32),
    output_tokens=Fixed(tokens=16),
    duration_s=20.0,
    warmup_s=1.0,
)


@pytest.fixture
def plan() -> Plan:
    return Plan(
        name="winner",
        variant=Variant(name="bf16", model=str(shipped_checkpoint())),
        engine=EngineArgs(),
        slo=Slo(),
        hpa=HpaSpec(max_replicas=4, metrics=(pods_metric(REQUESTS_RUNNING, 8),)),
    )


def evidence(scale: float = 1.0) -> Evidence:
    """Evidence whose prediction is the twin's for FakeEngine, or wrong by a factor."""
    step = StepTime()
    latency = LatencyModel(
        variant="bf16",
        base_s=step.base_s,
        per_prefill_token_s=step.per_prefill_token_s,
        per_decode_seq_s=step.per_decode_seq_s,
        per_kv_token_s=step.per_kv_token_s,
        kv_blocks=fake().replica.kv_blocks,
        block_size_tokens=fake().replica.block_size_tokens,
        cold_start=ColdStart(start_s=1.0, source="assumed"),
        fitted_range=FittedRange(prefill_tokens=512, decode_seqs=32, kv_tokens=4096),
        n_steps=0,
        source="the fake's own coefficients",
    )
    bare = Plan(
        name="x", variant=Variant(name="v", model="m"), engine=EngineArgs(), slo=Slo(), replicas=1
    )
    told = predict(bare, latency, LOAD)
    metrics = {
        name: Estimate(value=e.value * scale, low=e.low * scale, high=e.high * scale, n=e.n)
        for name, e in told.metrics.items()
    }
    return Evidence(prediction=Prediction(workload=LOAD, metrics=metrics), versions={"vllm": "0"})


def fake() -> FakeEngine:
    return FakeEngine(Variant(name="bf16", model="m"), EngineArgs())


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_input_gives_the_same_bytes(plan: Plan, tmp_path: Path) -> None:
    one = export(plan, tmp_path / "one", evidence=evidence())
    two = export(plan, tmp_path / "two", evidence=evidence())
    assert contents(one) == contents(two)
    weights = Path(plan.variant.model) / "model.safetensors"
    assert (one / "model" / "model.safetensors").read_bytes() == weights.read_bytes()
    assert check(one) == plan


@pytest.mark.parametrize("path", ["kubernetes/hpa.yaml", "plan.json", "model/config.json"])
def test_every_change_is_noticed(plan: Plan, tmp_path: Path, path: str) -> None:
    bundle = export(plan, tmp_path / "bundle", evidence=evidence())
    (bundle / path).write_text("changed")
    with pytest.raises(BundleError, match=f"{path} is changed"):
        check(bundle)
    (bundle / path).unlink()
    with pytest.raises(BundleError, match=f"{path} is missing"):
        check(bundle)
    export(plan, bundle, evidence=evidence())
    (bundle / "extra").write_text("")
    with pytest.raises(BundleError, match="extra is new"):
        check(bundle)


def test_what_is_not_a_bundle_is_left_alone(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with pytest.raises(BundleError, match="is not a bundle"):
        export(plan, tmp_path / "home", evidence=evidence())
    assert (tmp_path / "home" / "letter").read_text() == "dear"


def test_what_is_not_pinned_is_refused(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not pinned by digest"):
        export(plan, tmp_path / "out", evidence=evidence(), image="vllm/vllm-openai:latest")
    hub = plan.model_copy(update={"variant": Variant(name="hub", model="org/model")})
    with pytest.raises(BundleError, match="has no revision"):
        export(hub, tmp_path / "out", evidence=evidence())
    assert not (tmp_path / "out").exists()


def test_a_true_prediction_holds_and_a_wrong_one_does_not(plan: Plan, tmp_path: Path) -> None:
    true = export(plan, tmp_path / "true", evidence=evidence())
    with fake() as engine:
        found = verify(true, folder=tmp_path / "v1", engine=engine)
    assert found.holds, found.rows
    wrong = export(plan, tmp_path / "wrong", evidence=evidence(scale=2.0))
    with fake() as engine:
        missed = verify(wrong, folder=tmp_path / "v2", engine=engine)
    assert not missed.holds
    assert not missed.rows.set_index("metric").loc["ttft_p50_s", "holds"]
    missed.write(tmp_path / "v2")
    assert Verification.read(tmp_path / "v2").rows.equals(missed.rows)
