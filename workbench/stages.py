"""What each stage of the pipeline does with the results of the stages before it."""

from __future__ import annotations

import os
from pathlib import Path

from serving.errors import MeasurementError
from simulations.latency import LatencyModel
from simulations.traffic import Fixed
from workbench.compress import compress
from workbench.export import Evidence, export
from workbench.fit import fit
from workbench.measure import Measurement, frame, sweep_batches, sweep_rates
from workbench.pipeline import Pipeline, Stage
from workbench.progress import OnProgress
from workbench.results import SHAPES, UNTRUSTED, Results, served
from workbench.tables import day_table
from workbench.tune import Candidate, tune
from workbench.verify import verify

_LEAST_REQUESTS = 30
_DRAWS = 5
"""Days that are simulated with other coefficients: enough to say how much of an interval is theirs."""


def _list(folder: Path, names: list[str]) -> None:
    (folder / "results.txt").write_text("\n".join(names) + "\n")


def _compress(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
    results = Results(pipeline)
    chosen = results.settings
    variants = compress(
        chosen.model_path(),
        folder,
        engine_args=chosen.engine,
        recipes=chosen.recipes,
        ask=chosen.ask,
        seed=chosen.seed,
        distil_tokens=chosen.distil_tokens,
        on_progress=on_progress,
    )
    for variant in variants:
        variant.write(folder / f"{variant.name}.json")
    _list(folder, [f"{variant.name}.json" for variant in variants])
    results.trail("compress")


def _sweep(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
    results = Results(pipeline)
    chosen = results.settings
    swept = Fixed(tokens=chosen.sweep_tokens)
    points = sweep_batches(
        results.variants(),
        engine_args=chosen.engine,
        batches=chosen.batches,
        prompt_tokens=chosen.sweep_tokens,
        output_tokens=chosen.sweep_tokens,
        shapes=[pair for pair in chosen.fit_shapes if sum(pair) <= chosen.engine.max_model_len],
        repeats=chosen.repeats,
        folder=folder,
        seed=chosen.seed,
        on_progress=on_progress,
    )
    other = {
        point.name
        for point in points
        if (point.workload.prompt_tokens, point.workload.output_tokens) != (swept, swept)
    }
    (folder / SHAPES).write_text("\n".join(sorted(other)) + "\n")
    _list(folder, [point.name for point in points if point.name not in other])
    results.trail("sweep")


def _serve(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
    results = Results(pipeline)
    chosen = results.settings
    variants = served(results)
    offline = frame(results.measurements("sweep"))
    points: list[Measurement] = []
    for number, variant in enumerate(variants):

        def part(doing: str, share: float, number: int = number) -> None:
            on_progress(doing, (number + share) / len(variants))

        fastest = offline[offline["variant"] == variant.name]["output_tokens_per_s"].max()
        lengths = chosen.load(1.0).schedule().output_tokens.mean()
        capacity = fastest / lengths
        # A slow machine still needs as many requests as the gate asks for, in more time where it must.
        least = min(_LEAST_REQUESTS / chosen.load_duration_s, 0.8 * capacity)
        shares = list(dict.fromkeys(round(max(s * capacity, least), 2) for s in chosen.load_shares))
        load = chosen.load(1.0)
        if chosen.rates_rps is None:
            load = load.at(duration_s=max(load.duration_s, _LEAST_REQUESTS / min(shares)))
        points += sweep_rates(
            variant,
            load,
            rates_rps=chosen.rates_rps or shares,
            engine_args=chosen.engine,
            folder=folder,
            seed=chosen.seed,
            on_progress=part,
        )
    _list(folder, [point.name for point in points])
    results.trail("serve")


def _fit(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
    results = Results(pipeline)
    offline = results.measurements("sweep") + results.shapes()
    server = results.measurements("serve")
    models: list[LatencyModel] = []
    with_server = [v for v in results.variants() if any(m.variant.name == v.name for m in server)]
    # Those behind a server first: the others borrow their overheads.
    order = with_server + [v for v in results.variants() if v not in with_server]
    for number, variant in enumerate(order):
        on_progress(variant.name, number / len(order))
        own = [m for m in offline + server if m.variant.name == variant.name]
        own = [m for m in own if results.settings.force or not m.invalid]
        if not own:
            raise MeasurementError(
                f"no measurement of {variant.name!r} can be trusted",
                remedy="Run `workbench measure` again on a quiet machine, or `fit --force`.",
            )
        borrowed = None if variant in with_server else models[0]
        models.append(
            fit(
                own,
                seed=results.settings.seed,
                overheads_from=borrowed,
                cold_start=borrowed.cold_start if borrowed else None,
                force=results.settings.force,
            )
        )
        models[-1].write(folder / f"{variant.name}.json")
    _list(folder, [f"{model.variant}.json" for model in models])
    results.trail("fit")


def _simulate(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
    from simulations.simulate import simulate

    results = Results(pipeline)
    plan = results.article_plan()
    day = results.settings.day(results.peak_rps())
    model = results.latency_models()[plan.variant.name]
    result = simulate(
        plan,
        day,
        model,
        seeds=results.settings.tune_seeds,
        draws=_DRAWS,
        force=results.settings.force,
        on_progress=on_progress,
    )
    day_table(result, plan).to_parquet(folder / "day.parquet")
    result.timeline.to_parquet(folder / "timeline.parquet")


def _tune(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
    results = Results(pipeline)
    chosen = results.settings
    models = results.latency_models()
    tuning = tune(
        [Candidate(variant=v, latency=models[v.name]) for v in results.variants()],
        chosen.day(results.peak_rps()),
        chosen.slo,
        engine=chosen.engine,
        space=chosen.space,
        sampler=chosen.sampler,
        objective=chosen.objective,
        trials=chosen.trials,
        seeds=chosen.tune_seeds,
        choice_seeds=chosen.choice_seeds,
        unseen_seeds=chosen.unseen_seeds,
        neighbour_seeds=chosen.neighbour_seeds,
        random_baseline=chosen.random_baseline,
        storage=folder / "study.db",
        seed=chosen.seed,
        n_jobs=len(os.sched_getaffinity(0)),
        ray=chosen.ray,
        at_once=chosen.trials_at_once,
        gpu_usd_per_hour=chosen.gpu_usd_per_hour,
        force=chosen.force,
        on_progress=on_progress,
    )
    tuning.write(folder)
    results.trail("tune")


def _export(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
    results = Results(pipeline)
    tuning = results.tuning()
    on_progress(tuning.winner.name, 0.1)
    winner = tuning.winner.variant.name
    points = [*results.measurements("sweep"), *results.shapes(), *results.measurements("serve")]
    used = [point for point in points if results.settings.force or not point.invalid]
    evidence = Evidence.of(
        measurements=[point for point in used if point.variant.name == winner],
        latency=results.latency_models()[winner],
        tuning=tuning,
        mlflow_run_ids=results.run_ids(),
    )
    forced = bool(results.settings.force)
    export(tuning.winner, folder / "bundle", evidence=evidence, force=forced)
    results.trail("export")


def _verify(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
    results = Results(pipeline)
    try:
        verification = verify(
            pipeline.folder("export") / "bundle", folder=folder, attempts=2, on_progress=on_progress
        )
    except MeasurementError as error:
        # Neither kept nor broken: the page says so, and the next run tries again.
        (folder / UNTRUSTED).write_text(str(error))
        (folder / "begun.json").unlink()
        return
    (folder / UNTRUSTED).unlink(missing_ok=True)
    verification.write(folder)
    results.trail("verify")


def _report(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
    from workbench.report import ReportData, report

    results = Results(pipeline)
    on_progress("figures", 0.2)
    report(
        ReportData(
            title="LLM serving: what to deploy, and why",
            variants=tuple(results.variants()),
            measurements=tuple(results.measurements("sweep") + results.measurements("serve")),
            latency_models=tuple(results.latency_models().values()),
            tuning=results.tuning(),
            verification=results.verification() if pipeline.is_done("verify") else None,
            settings=results.settings.model_dump(mode="json"),
            command=f"workbench demo --workdir {pipeline.workdir.name}",
        ),
        pipeline.workdir / "report.html",
    )
    results.trail("report")


_LOAD = ("load_shares", "rates_rps", "load_duration_s", "served_variants", "slo")
_DAY = ("slo", "profile", "length_divisor", "peak_rps", "peak_replicas", "day_duration_s")
STAGES = (
    Stage(
        "compress",
        "Compress: make variants, judge their quality",
        "compress",
        ("seed", "recipes", "distil_tokens", "ask"),
        (),
        _compress,
        apart=True,
    ),
    Stage(
        "sweep",
        "Measure: batch sweep, offline vLLM",
        "measure",
        ("seed", "engine", "batches", "sweep_tokens", "fit_shapes", "repeats"),
        ("compress",),
        _sweep,
        apart=True,
    ),
    Stage(
        "serve",
        "Measure: open-loop load, vLLM server",
        "measure",
        ("profile", "length_divisor", *_LOAD),
        ("compress", "sweep"),
        _serve,
    ),
    Stage(
        "fit",
        "Fit: latency models from the step log",
        "fit",
        ("force",),
        ("compress", "sweep", "serve"),
        _fit,
    ),
    Stage(
        "simulate",
        "Simulate: a day under the article's HPA",
        "simulate",
        (*_DAY, "gpu_usd_per_hour", "tune_seeds"),
        ("fit",),
        _simulate,
    ),
    Stage(
        "tune",
        "Tune: HPA thresholds with Optuna",
        "tune",
        (
            *_DAY,
            "gpu_usd_per_hour",
            "tune_seeds",
            "trials",
            "trials_at_once",
            "choice_seeds",
            "unseen_seeds",
            "neighbour_seeds",
            "random_baseline",
            "space",
            "sampler",
            "objective",
        ),
        ("fit",),
        _tune,
    ),
    Stage("export", "Export: the bundle", "export", (), ("tune",), _export),
    Stage("verify", "Verify: the bundle on real vLLM", "verify", (), ("export",), _verify),
    Stage("report", "Report: one HTML page", "report", (), ("tune",), _report, shows=("verify",)),
)
