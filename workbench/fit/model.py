"""One variant's measurements -> its LatencyModel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serving.errors import InputError, MeasurementError
from serving.values import Estimate
from simulations.latency import ColdStart, FittedRange, LatencyModel
from simulations.traffic import Schedule
from workbench.fit.regression import Fitted, choose
from workbench.fit.steps import (
    ATTENTION,
    BASE,
    DECODE,
    KV,
    PREFILL,
    SERVER,
    FloatArray,
    IntArray,
    Steps,
    steps_of,
)
from workbench.measure import Measurement

_RESAMPLES = 1000
_MIN_PER_MODE = 30


def fit(
    measurements: Sequence[Measurement],
    *,
    holdout: float = 0.25,
    seed: int = 0,
    cold_start: ColdStart | None = None,
    overheads_from: LatencyModel | None = None,
    force: bool = False,
) -> LatencyModel:
    """Fit the step times of one variant, and say how wrong they are on steps that were not fitted.

    A server's step is the engine's plus a constant (`step_overhead_s`: scheduling, output
    processing, HTTP, and the client where it shares the machine); with offline and server steps
    together the constant is fitted beside the engine's terms, with steps of one kind it is the
    median gap between them. `request_overhead_s` is what the twin, given the same requests at the
    lightest load, falls short of the measured TTFT. Relative errors on held-out blocks:

        step_median         median over steps of |predicted / measured - 1|
        block_median        the same for the summed time of some consecutive steps
        total_time          summed predicted / summed measured - 1, signed, outliers included
        server_step_median  step_median of server steps, where offline steps were fitted too

    Args:    measurements: offline and server points of one variant.
             holdout: share of the steps that is kept from the fit, in blocks of consecutive steps.
             cold_start: None takes the median measured start of a server (else of an engine).
             overheads_from: another variant's model, whose overheads are taken where no server was
                 measured.
             force: use measurements that cannot be trusted; the model says so in `doubts`.
    Raises:  InputError: nothing to fit, or several variants.
             MeasurementError: an invalid measurement, too few steps, or an unknown KV cache.
    """
    _check(measurements, holdout, force=force)
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)]
    steps = steps_of(measurements, holdout, streams[0])
    mixed = min(steps.server.sum(), (~steps.server).sum()) >= _MIN_PER_MODE
    columns = np.ones(6, dtype=bool)
    columns[SERVER] = mixed
    fitted = choose(steps.where(~steps.held_out), columns, streams[1])
    coefficients = fitted.coefficients
    served = [m for m in measurements if m.mode == "server"]
    step_overhead_s = coefficients[SERVER] + _gap_s(served or measurements)
    borrowed = overheads_from if not served else None
    model = LatencyModel(
        variant=measurements[0].variant.name,
        floor_s=fitted.floor_s,
        base_s=coefficients[BASE],
        per_prefill_token_s=coefficients[PREFILL],
        per_decode_seq_s=coefficients[DECODE],
        per_kv_token_s=coefficients[KV],
        per_prefill_attention_s=coefficients[ATTENTION],
        step_overhead_s=borrowed.step_overhead_s if borrowed else step_overhead_s,
        request_overhead_s=borrowed.request_overhead_s if borrowed else 0.0,
        kv_blocks=_kv_blocks(served or measurements),
        block_size_tokens=(served or measurements)[0].replica.block_size_tokens,
        cold_start=cold_start or _cold_start(measurements),
        fitted_range=FittedRange(
            **{
                name: int(steps.terms[:, column].max())
                for name, column in (
                    ("prefill_tokens", PREFILL),
                    ("decode_seqs", DECODE),
                    ("kv_tokens", KV),
                )
            }
        ),
        n_steps=int((~steps.held_out).sum()),
        heldout_error=_heldout(fitted, steps, streams[2], mixed=bool(mixed)),
        source=_source(measurements, borrowed),
        doubts=(
            *(f"{m.name}: {reason}" for m in measurements for reason in m.invalid),
            *(borrowed.doubts if borrowed else ()),
        ),
    )
    if not served:
        return model
    return model.model_copy(update={"request_overhead_s": _request_overhead_s(served, model)})


def _check(measurements: Sequence[Measurement], holdout: float, *, force: bool) -> None:
    if not measurements:
        raise InputError("measurements(=[]) is empty", remedy="Measure first.")
    if not 0 < holdout < 1:
        raise InputError(f"holdout(={holdout}) must be > 0 and < 1", remedy="Take a quarter: 0.25.")
    names = sorted({m.variant.name for m in measurements})
    if len(names) > 1:
        raise InputError(
            f"measurements are of several variants(={names})", remedy="Fit one at a time."
        )
    for m in measurements:
        if m.invalid and not force:
            raise MeasurementError(
                f"measurement {m.name!r} is invalid: {'; '.join(m.invalid)}",
                remedy="Measure it again, leave it out, or force it.",
            )


def _gap_s(measurements: Sequence[Measurement]) -> float:
    """Median time between two steps of a busy engine; 0 where the log counts it to the step."""
    gaps = np.concatenate([m.steps["gap_s"].dropna().to_numpy() for m in measurements])
    return max(0.0, float(np.median(gaps))) if len(gaps) else 0.0


def _kv_blocks(measurements: Sequence[Measurement]) -> int:
    fewest = min(m.replica.kv_blocks for m in measurements)
    if fewest <= 0:
        raise MeasurementError(
            f"kv_blocks(={fewest}): the engine did not say how large its KV cache is",
            remedy="Measure an engine that the workbench starts itself.",
        )
    return fewest


def _cold_start(measurements: Sequence[Measurement]) -> ColdStart:
    """The median start of a server; without one, of an offline engine."""
    for mode, what in (
        ("server", "server process to first answer"),
        ("offline", "engine in a running process to first answer, without a server's imports"),
    ):
        starts = sorted(
            {m.replica.start_s for m in measurements if m.mode == mode and m.replica.start_s > 0}
        )
        if starts:
            return ColdStart(
                start_s=float(np.median(starts)),
                source=f"start measured: {what}, {len(starts)} start{'s' * (len(starts) > 1)} on"
                f" {measurements[0].environment.hardware}; scheduling and pull assumed",
            )
    raise InputError(
        "no measurement says how long a start took (somebody else started the server)",
        remedy="Give cold_start.",
    )


def _request_overhead_s(served: Sequence[Measurement], model: LatencyModel) -> float:
    """What the twin's TTFT lacks at the lightest measured load: the median over requests."""
    from simulations.engine import simulate_replica

    lightest = min(served, key=lambda m: m.steps["running"].mean() if len(m.steps) else np.inf)
    sent = lightest.requests.dropna(subset=["sent_s", "first_token_s"])
    sent = sent.sort_values("sent_s", kind="stable").reset_index(drop=True)
    schedule = Schedule(
        sent["sent_s"].to_numpy(dtype=np.float64),
        sent["prompt_tokens"].to_numpy(dtype=np.int64),
        np.maximum(sent["output_tokens"].to_numpy(dtype=np.int64), 1),
    )
    predicted = simulate_replica(schedule, model, lightest.engine, concurrency=lightest.batch)
    short_s = (sent["first_token_s"] - sent["sent_s"] - predicted["ttft_s"])[sent["counted"]]
    return max(0.0, float(np.median(short_s))) if len(short_s) else 0.0


def _heldout(
    fitted: Fitted, steps: Steps, rng: np.random.Generator, *, mixed: bool
) -> dict[str, Estimate]:
    """Errors on held-out blocks; intervals by drawing blocks with replacement."""
    unseen = steps.where(steps.held_out)
    errors = _errors(fitted.predict(unseen.terms), unseen.step_s, unseen.block, rng)
    if mixed and unseen.server.any():
        server = unseen.where(unseen.server)
        of_server = _errors(fitted.predict(server.terms), server.step_s, server.block, rng)
        errors["server_step_median"] = of_server["step_median"]
    return errors


def _errors(
    predicted_s: FloatArray, measured_s: FloatArray, block: IntArray, rng: np.random.Generator
) -> dict[str, Estimate]:
    relative = np.abs(predicted_s / measured_s - 1)
    names, position = np.unique(block, return_inverse=True)
    predicted, measured = (np.bincount(position, s) for s in (predicted_s, measured_s))
    rows = [np.flatnonzero(position == i) for i in range(len(names))]

    def of(drawn: IntArray) -> tuple[float, float, float]:
        steps = np.median(relative[np.concatenate([rows[i] for i in drawn])])
        blocks = np.median(np.abs(predicted[drawn] / measured[drawn] - 1))
        return steps, blocks, predicted[drawn].sum() / measured[drawn].sum() - 1

    found = of(np.arange(len(names)))
    drawn = np.array([of(rng.integers(0, len(names), len(names))) for _ in range(_RESAMPLES)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return {
        name: Estimate(value=found[i], low=low[i], high=high[i], n=n)
        for i, (name, n) in enumerate(
            (
                ("step_median", len(relative)),
                ("block_median", len(names)),
                ("total_time", len(names)),
            )
        )
    }


def _source(measurements: Sequence[Measurement], borrowed: LatencyModel | None) -> str:
    """What was measured, on what, and what was not."""
    environment = measurements[0].environment
    served = sum(m.mode == "server" for m in measurements)
    version = measurements[0].replica.engine_version
    said = (
        f"{len(measurements) - served} offline and {served} server measurements on"
        f" {environment.hardware}, vLLM {version}, {environment.started_at}"
    )
    if borrowed is not None:
        return f"{said}; step and request overheads borrowed from {borrowed.variant}"
    return said if served else f"{said}; request overhead not measured (no server), taken as 0"
