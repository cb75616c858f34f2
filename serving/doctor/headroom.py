"""The check for running out of GPU memory, with remedies that are computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from serving.doctor.bundle import Bundle
from serving.doctor.finding import Finding
from serving.doctor.machine import Machine
from serving.doctor.memory import GIB, Budget, step_bytes
from serving.doctor.model import Shape, Weights
from serving.plan import EngineArgs

_NAME = "memory head-room"
_BLOCK = 16  # tokens of a KV block


def head_room(machine: Machine, bundle: Bundle | None) -> Finding:
    """Whether weights, a step and the KV cache of max_num_seqs x max_model_len fit the GPU.

    Fails where vLLM would not start, warns where a full batch would be preempted.
    """
    if bundle is None:
        return _skip("needs a bundle")
    shape, weights, engine = bundle.model.shape, bundle.model.weights, _spread(bundle)
    if shape is None or weights is None:
        return _skip(
            f"the sizes of {bundle.plan.variant.model} are not known here",
            "Fetch the model first: `hf download MODEL --revision REVISION`.",
        )
    if not machine.gpus:
        return _on_cpu(machine, shape, weights, engine)
    memory = min(gpu.memory_bytes for gpu in machine.gpus)
    budget = Budget.of(shape, weights, engine, memory)
    says = in_words(budget, engine, memory)
    if budget.starts() and budget.held >= engine.max_num_seqs:
        return Finding(name=_NAME, status="pass", says=says)
    told = "; ".join(remedies(Trial(shape, weights, engine, memory)))
    if budget.starts():
        says += "; beyond that vLLM preempts"
        return Finding(name=_NAME, status="warn", says=says, remedy=told)
    missing = f"{budget.over / GIB:.1f} GiB short" if budget.over else "not one request fits"
    return Finding(name=_NAME, status="fail", says=f"{missing}: {says}", remedy=told)


def in_words(budget: Budget, engine: EngineArgs, memory_bytes: int) -> str:
    """The budget as one line."""
    share = "all" if engine.kv_cache_memory_bytes else f"{engine.gpu_memory_utilization:g}"
    return (
        f"{budget.limit / GIB:.1f} GiB ({share} of {memory_bytes / GIB:.1f}) less weights"
        f" {budget.weights / GIB:.1f} and a step {budget.step / GIB:.1f} (assumed) leave"
        f" {budget.kv_room / GIB:.1f} for the KV cache: {budget.held} of {engine.max_num_seqs}"
        f" requests of {engine.max_model_len} tokens"
    )


class Trial(NamedTuple):
    """What is asked to fit, so that changes of it can be tried."""

    shape: Shape
    weights: Weights
    engine: EngineArgs
    memory_bytes: int

    def fits(self, *, weight_bytes: int | None = None, **changes: Any) -> bool:
        """Whether a full batch would fit with these fields of the engine changed."""
        engine = self.engine.model_validate(self.engine.model_dump() | changes)
        served = self.weights.served_bytes if weight_bytes is None else weight_bytes
        weights = self.weights.model_copy(update={"served_bytes": served})
        budget = Budget.of(self.shape, weights, engine, self.memory_bytes)
        return budget.starts() and budget.held >= engine.max_num_seqs


def remedies(trial: Trial) -> list[str]:
    """What would make a full batch fit, the cheapest first; each was tried on the same arithmetic."""
    engine = trial.engine
    seqs = _largest(engine.max_num_seqs, lambda n: trial.fits(max_num_seqs=n))
    blocks = _largest(
        engine.max_model_len // _BLOCK, lambda n: trial.fits(max_model_len=n * _BLOCK)
    )
    found = [f"max_num_seqs {seqs}"] if seqs else []
    found += [f"max_model_len {blocks * _BLOCK}"] if blocks else []
    found += _narrower(trial)
    offload = _largest_gap(trial)
    if offload:
        found.append(f"--cpu-offload-gb {offload} (slow: those weights cross PCIe in every step)")
    found.append("--kv-offloading-size GIB keeps in RAM what is evicted (helps preemption only)")
    for gpus in (2, 4, 8):
        if gpus > engine.tensor_parallel_size and trial.fits(tensor_parallel_size=gpus):
            found.append(f"tensor_parallel_size {gpus}")
            break
    return found


def _narrower(trial: Trial) -> list[str]:
    """Fewer bits for the KV cache, and for the weights where they have all of theirs."""
    found = []
    narrow = trial.engine.model_copy(update={"kv_cache_dtype": "fp8"})
    kv, kv_fp8 = (trial.shape.kv_bytes_per_token(e) for e in (trial.engine, narrow))
    if kv_fp8 < kv:
        enough = "enough" if trial.fits(kv_cache_dtype="fp8") else "not enough alone"
        found.append(f"kv_cache_dtype fp8 (1/{kv // kv_fp8} of the bytes, {enough})")
    width = trial.shape.width_bytes(trial.engine)
    for bits in (8, 4) if trial.weights.plain else ():
        smaller = trial.weights.served_bytes * bits // (8 * width)
        if trial.fits(weight_bytes=smaller):
            found.append(f"an INT{bits} variant (about {smaller / GIB:.1f} GiB)")
            break
    return found


def _largest_gap(trial: Trial) -> int:
    """GiB of weights that would have to leave each GPU; 0 where even all of them are too few."""
    spread = trial.engine.tensor_parallel_size
    whole = trial.weights.served_bytes // spread // GIB
    kept = _largest(whole, lambda n: trial.fits(weight_bytes=n * GIB * spread))
    return -(-trial.weights.served_bytes // spread // GIB) - kept if kept else 0


def _largest(most: int, works: Callable[[int], bool]) -> int:
    """The largest from 1 to `most` that works, where all below it work too; 0 where none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if works(middle) else (low, middle - 1)
    return low


def _spread(bundle: Bundle) -> EngineArgs:
    """The engine over all GPUs that the plan gives a replica."""
    gpus = bundle.gpus_per_replica
    return bundle.plan.engine.model_copy(update={"tensor_parallel_size": gpus})


def _on_cpu(machine: Machine, shape: Shape, weights: Weights, engine: EngineArgs) -> Finding:
    """RAM in place of GPU memory, for vLLM on a CPU."""
    per_token = shape.kv_bytes_per_token(engine)
    full = engine.max_num_seqs * engine.max_model_len * per_token
    kv = engine.kv_cache_memory_bytes or full
    wanted = weights.served_bytes + kv + step_bytes(shape, engine)
    says = (
        f"no GPU; in RAM weights {weights.served_bytes / GIB:.2f}, KV cache {kv / GIB:.2f} and a step"
        f" {step_bytes(shape, engine) / GIB:.2f} (assumed) of {machine.memory_available_bytes / GIB:.1f}"
        " GiB available"
    )
    if wanted <= machine.memory_available_bytes:
        return Finding(name=_NAME, status="pass", says=says)
    return Finding(
        name=_NAME, status="fail", says=says, remedy="Lower kv_cache_memory_bytes or max_num_seqs."
    )


def _skip(says: str, remedy: str = "") -> Finding:
    return Finding(name=_NAME, status="skip", says=says, remedy=remedy)
