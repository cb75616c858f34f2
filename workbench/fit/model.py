"""One variant's measurements -> its LatencyModel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serving.errors import InputError, MeasurementError
from simulations.latency import Coefficients, ColdStart, FittedRange, LatencyModel
from workbench.fit import regression as r
from workbench.fit.errors import by_label, heldout
from workbench.fit.graphs import captured_sizes, launches
from workbench.fit.noise import residuals
from workbench.fit.overheads import gap_s, with_requests
from workbench.fit.shapes import check_shapes, label
from workbench.fit.steps import DECODE, KV, PREFILL, Steps, steps_of
from workbench.measure import Measurement
from workbench.measure.coldstart import ColdStartParts
from workbench.measure.engine import OnProgress

_MIN_PER_MODE = 30


def fit(
    measurements: Sequence[Measurement],
    *,
    holdout: float = 0.25,
    seed: int = 0,
    draws: int = 30,
    cold_start: ColdStart | None = None,
    overheads_from: LatencyModel | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> LatencyModel:
    """Fit the step times of one variant, and say how wrong they are on steps that were not fitted.

    A server's step is the engine's plus a constant (`step_overhead_s`: scheduling, output
    processing, HTTP, and the client where it shares the machine); with offline and server steps
    together the constant is fitted beside the engine's terms, with steps of one kind it is the
    median gap between them. What requests cost besides is in `overheads.with_requests`, the scatter
    in `noise.residuals`, what prefills wait for their launch in `graphs.launches`.

    The coefficients are fitted to all steps, so that they hang on no seed; errors and scatter are those
    of the same fit to what was not held out. Relative errors, also by shape and load (`heldout_by`):

        step_median          median over steps of |predicted / measured - 1|
        step_mean            the mean of the same: MAPE
        block_median         the median for the summed time of some consecutive steps
        total_time           summed predicted / summed measured - 1, signed, outliers included
        prefill_step_median  step_median of steps with prefill, where there are others
        server_step_median   step_median of server steps, where offline steps were fitted too

    With async scheduling a prefill is timed with its neighbours, see `steps.Steps`.

    Args:    measurements: offline and server points of one variant, of at least three lengths.
             holdout: share of the steps that the errors are told by, in blocks of consecutive steps.
             draws: of the coefficients, by a bootstrap over blocks.
             cold_start: None takes the median measured start of a server (else of an engine).
             overheads_from: another variant's model, whose overheads are taken where no server was
                 measured.
             force: use measurements that cannot be trusted, or lengths that are too much alike; the
                 model says so in `doubts`.
    Raises:  InputError: nothing to fit, or several variants.
             MeasurementError: an invalid measurement, too few steps, too few lengths, or an unknown
                 KV cache.
    """
    say = on_progress or (lambda doing, share: None)
    _check(measurements, holdout, force=force)
    say("fitting the terms", 0.0)
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(5)]
    steps = steps_of(measurements, holdout, streams[0])
    alike = check_shapes(steps, measurements, force=force)
    train, unseen = steps.where(~steps.held_out), steps.where(steps.held_out)
    mixed = bool(min(steps.server.sum(), (~steps.server).sum()) >= _MIN_PER_MODE)
    sizes = captured_sizes(measurements)
    launches_s = launches(measurements, sizes)
    fitted, tried = (
        r.fit_terms(some, sizes, mixed=mixed, launches_s=launches_s) for some in (steps, train)
    )
    served = [m for m in measurements if m.mode == "server"]
    borrowed = overheads_from if not served else None
    between_s = gap_s(served or measurements)
    overhead_s = borrowed.step_overhead_s if borrowed else None
    redrawn = []
    for number in range(draws):
        say(f"draw {number + 1} of {draws}", 0.5 + 0.5 * number / draws)
        redrawn.append(r.redraw(fitted, steps, streams[3]))
    labels = [label(m) for m in measurements]
    replica = (served or measurements)[0].replica
    model = LatencyModel(
        variant=measurements[0].variant.name,
        **_coefficients(fitted, between_s, overhead_s).model_dump(),
        pad_to_tokens=fitted.form.pad_to_tokens,
        captured_tokens=fitted.form.captured_tokens,
        prefill_launch_s=launches_s[0],
        uncaptured_launch_s=launches_s[1],
        request_overhead_s=borrowed.request_overhead_s if borrowed else 0.0,
        response_overhead_s=borrowed.response_overhead_s if borrowed else 0.0,
        response_per_seq_s=borrowed.response_per_seq_s if borrowed else 0.0,
        request_noise_s=borrowed.request_noise_s if borrowed else (),
        residuals=residuals(unseen.summed(unseen.step_s), tried.predict(unseen)),
        draws=tuple(_coefficients(drawn, between_s, overhead_s) for drawn in redrawn),
        kv_blocks=_kv_blocks(served or measurements),
        block_size_tokens=replica.block_size_tokens,
        engine_version=replica.engine_version,
        async_scheduling=replica.async_scheduling,
        cold_start=cold_start or _cold_start(measurements),
        fitted_range=_range(steps, measurements),
        n_steps=len(steps),
        shapes=tuple(dict.fromkeys(labels)),
        heldout_error=heldout(tried, unseen, streams[2], mixed=mixed),
        heldout_by=by_label(tried, unseen, labels, streams[4]),
        source=_source(measurements, borrowed),
        doubts=(
            *(f"{m.name}: {reason}" for m in measurements for reason in m.invalid),
            *alike,
            *(borrowed.doubts if borrowed else ()),
        ),
    )
    model = with_requests(model, served) if served else model
    say("fitted", 1.0)
    return model


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


def _coefficients(fitted: r.Fitted, between_s: float, overhead_s: float | None) -> Coefficients:
    """What was fitted, in the model's names.

    Args:    between_s: from the end of a step to the start of the next, where the log has it.
             overhead_s: borrowed from another model; None where a server or a gap was measured.
    """
    found = fitted.coefficients
    return Coefficients(
        base_s=found[r.BASE],
        per_seq_s=found[r.SEQS],
        floor_s=fitted.floor_s,
        per_token_s=found[r.TOKENS],
        per_kv_token_s=found[r.KV],
        per_prefill_attention_s=found[r.ATTENTION],
        prefill_step_s=found[r.PREFILL_STEP],
        step_overhead_s=found[r.SERVER] + between_s if overhead_s is None else overhead_s,
    )


def _range(steps: Steps, measurements: Sequence[Measurement]) -> FittedRange:
    longest = [
        int((m.requests["prompt_tokens"] + m.requests["output_tokens"]).max())
        for m in measurements
        if len(m.requests)
    ]
    return FittedRange(
        prefill_tokens=int(steps.terms[:, PREFILL].max()),
        decode_seqs=int(steps.terms[:, DECODE].max()),
        kv_tokens=int(steps.terms[:, KV].max()),
        context_tokens=max(longest, default=0),
    )


def _kv_blocks(measurements: Sequence[Measurement]) -> int:
    fewest = min(m.replica.kv_blocks for m in measurements)
    if fewest <= 0:
        raise MeasurementError(
            f"kv_blocks(={fewest}): the engine did not say how large its KV cache is",
            remedy="Measure an engine that the workbench starts itself.",
        )
    return fewest


def _cold_start(measurements: Sequence[Measurement]) -> ColdStart:
    """The median start of a server; without one, of an offline engine. Its parts are that start's.

    A start is not told whether the file cache was warm or something compiled was kept; so what they
    save stays unknown.
    """
    for mode, what in (
        ("server", "server process to first answer"),
        ("offline", "engine in a running process to first answer, without a server's imports"),
    ):
        known = {
            m.replica.start_s: m.replica.cold_start
            for m in measurements
            if m.mode == mode and m.replica.start_s > 0
        }
        if known:
            starts = sorted(known)
            middle_s = starts[(len(starts) - 1) // 2]
            return ColdStart(
                start_s=float(np.median(starts)),
                **_parts(known[middle_s], middle_s),
                source=f"start measured: {what}, {len(starts)} start{'s' * (len(starts) > 1)} on"
                f" {measurements[0].environment.hardware}; scheduling and pull assumed",
            )
    raise InputError(
        "no measurement says how long a start took (somebody else started the server)",
        remedy="Give cold_start.",
    )


def _parts(start: ColdStartParts | None, start_s: float) -> dict[str, float]:
    """Parts that the log named; together they are at most the start, which another clock timed."""
    if start is None:
        return {}
    named = {
        "load_s": start.load_s or 0.0,
        "compile_s": start.compile_s or 0.0,
        "capture_s": start.capture_s or 0.0,
        "warmup_s": start.warmup_s or 0.0,
    }
    share = min(1.0, start_s / sum(named.values())) if any(named.values()) else 1.0
    return {name: seconds * share for name, seconds in named.items()}


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
