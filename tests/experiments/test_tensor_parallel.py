"""What is read out of a profile, and how two GPUs are compared with one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from experiments import tensor_parallel
from serving.plan import EngineArgs, Variant
from workbench.measure import FakeEngine, Study, read_study
from workbench.measure.fake import StepTime
from workbench.model import shipped_checkpoint

VARIANT = Variant(name="bf16", model=str(shipped_checkpoint()))


def kernel(name: str, begin_us: float, lasts_us: float) -> dict[str, object]:
    return {"cat": "kernel", "name": name, "ts": begin_us, "dur": lasts_us}


def test_communication_is_told_from_other_kernels(tmp_path: Path) -> None:
    events = [
        {"cat": "cpu_op", "name": "aten::mm", "ts": 0, "dur": 900},
        kernel("gemm_bf16", 1000, 3000),
        kernel("void vllm::cross_device_reduce_1stage<__nv_bfloat16, 2>", 4000, 500),
        kernel("ncclDevKernel_AllGather_RING_LL", 4500, 500),
    ]
    trace = tmp_path / "rank0.json.gz"
    trace.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    assert tensor_parallel.kernel_times(trace) == {
        "busy_ms": 4.0,
        "communication_ms": 1.0,
        "span_ms": 4.0,
    }


def test_shares_are_means_over_the_gpus(tmp_path: Path) -> None:
    times = {"busy_ms": 4.0, "span_ms": 5.0}
    rows = [
        {"doing": "decode", "sequences": 1, "gpu": gpu, "communication_ms": ms, **times}
        for gpu, ms in enumerate((1.0, 3.0))
    ]
    (tmp_path / "communication-bf16.json").write_text(json.dumps(rows))
    table = tensor_parallel.shares(tmp_path)
    assert table["share"].tolist() == [0.5]
    assert table["variant"].tolist() == ["bf16"]


STUDY = Study(
    name="tensor-parallel",
    question="What does a second GPU give?",
    engine=EngineArgs(max_model_len=256, max_num_seqs=8, max_num_batched_tokens=256),
    engine_grid={"tensor_parallel_size": (1, 2)},
    lengths=((32, 64),),
    concurrency=(1, 4),
    repeats=2,
)


class HalfTheTime(FakeEngine):
    """On two GPUs a step takes half the time, and a tenth of that goes into communication."""

    def __init__(self, variant: Variant, engine_args: EngineArgs, traces: Path) -> None:
        gpus = engine_args.tensor_parallel_size
        step = StepTime(base_s=8e-3 / gpus, per_seq_s=0, per_token_s=0, per_kv_token_s=0)
        super().__init__(variant, engine_args, step_time=step)
        self.traces = traces

    def profile(self, doing: str, sequences: int, prompt_tokens: int) -> list[Path]:
        found = []
        for gpu in range(self.engine_args.tensor_parallel_size):
            path = self.traces / f"{doing}-{sequences}-{gpu}.json"
            events = [kernel("gemm", 0, 900), kernel("ncclDevKernel_AllReduce", 900, 100)]
            path.write_text(json.dumps({"traceEvents": events}))
            found.append(path)
        return found


def test_two_gpus_are_compared_with_one_by_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_parallel, "ProfiledEngine", HalfTheTime)
    done = list(tensor_parallel.measure(STUDY, [VARIANT], tmp_path))
    assert len(done) == 8 + 1, "eight points and one profile"
    table = tensor_parallel.speedups(read_study(tmp_path))
    assert table["batch"].tolist() == [1, 4]
    assert table["speedup"].tolist() == pytest.approx([2, 2], rel=0.05)
    assert (table["tpot_p50_s_1"] / table["tpot_p50_s_2"]).tolist() == pytest.approx(
        [2, 2], rel=0.05
    )
    assert tensor_parallel.shares(tmp_path)["share"].tolist() == pytest.approx([0.1] * 4)
    assert len(tensor_parallel.figure(table).data) == 1
    assert list(tensor_parallel.measure(STUDY, [VARIANT], tmp_path)) == []


@pytest.mark.vllm
def test_steps_of_real_vllm_are_profiled(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    arguments = EngineArgs(
        max_model_len=256,
        max_num_seqs=8,
        max_num_batched_tokens=256,
        gpu_memory_utilization=0.3,
        enforce_eager=True,
    )
    with tensor_parallel.ProfiledEngine(VARIANT, arguments, tmp_path) as engine:
        for doing in ("decode", "prefill"):
            (trace,) = engine.profile(doing, 2, 32)
            tensor_parallel.kernel_times(trace)  # a CPU has no kernels to tell
            assert trace.stat().st_size
