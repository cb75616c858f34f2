"""Compile the engine twin now, so that nobody waits for it later.

    python -m simulations.engine.compile

The machine code stays beside the source, or where NUMBA_CACHE_DIR says.
"""

from __future__ import annotations

import numpy as np

from serving.plan import EngineArgs
from simulations.engine.dataplane import DataPlane
from simulations.engine.options import SchedulerOptions
from simulations.latency import ColdStart, FittedRange, LatencyModel
from simulations.traffic import Schedule

_ANY = LatencyModel(
    variant="any",
    base_s=1e-3,
    per_seq_s=0.0,
    floor_s=0.0,
    per_token_s=0.0,
    per_kv_token_s=0.0,
    step_overhead_s=0.0,
    kv_blocks=64,
    cold_start=ColdStart(start_s=0, source="not used"),
    fitted_range=FittedRange(prefill_tokens=64, decode_seqs=1, kv_tokens=64),
    n_steps=0,
    source="any: what is compiled does not depend on it",
)


def compile_all() -> None:
    """Serve one request and lose its replica: all that Python calls of the compiled core."""
    one = np.ones(1, np.int64)
    schedule = Schedule(np.zeros(1), prompt_tokens=one, output_tokens=one)
    plane = DataPlane(schedule, _ANY, SchedulerOptions.of(EngineArgs(), _ANY))
    row = plane.add()
    plane.advance(1.0, [row])
    plane.fail(row)


if __name__ == "__main__":
    compile_all()
