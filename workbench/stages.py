"""What each stage of the pipeline does with the results of the stages before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from serving.errors import InputError
from serving.hpa import GPU_UTILISATION, TTFT_MEAN, HpaSpec, pods_metric
from serving.plan import Plan, Variant
from simulations.latency import LatencyModel
from simulations.result import SimResult
from workbench.compress import compress
from workbench.export import Evidence, export
from workbench.fit import fit
from workbench.measure import Measurement, frame, sweep_batches, sweep_rates
from workbench.pipeline import Pipeline, Stage
from workbench.progress import OnProgress
from workbench.settings import Settings
from workbench.track import PipelineRun, Tracker
from workbench.tune import Candidate, SearchSpace, Tuning, tune
from workbench.verify import Verification, verify

# Plain Kubernetes has no pool of standby pods, and takes a tolerance of its own from 1.33 on only:
# what is simulated has to be what is applied.
_SHIPPABLE = SearchSpace(warm_spares=(0,), tolerance=(0.1,))


class Results:
    """The results that lie in a data directory, read when asked for."""

    def __init__(self, pipeline: Pipeline) -> None:
        assert isinstance(pipeline.settings, Settings)
        self.pipeline = pipeline
        self.settings = pipeline.settings

    def variants(self) -> list[Variant]:
        """In the order in which they were made: the parent first."""
        return [Variant.read(path) for path in _listed(self.pipeline.folder("compress"))]

    def measurements(self, stage: str) -> list[Measurement]:
        """Points of a sweep, in the order in which they were measured."""
        return [Measurement.read(path) for path in _listed(self.pipeline.folder(stage))]

    def latency_models(self) -> dict[str, LatencyModel]:
        """By variant."""
        models = [LatencyModel.read(path) for path in _listed(self.pipeline.folder("fit"))]
        return {model.variant: model for model in models}

    def peak_rps(self) -> float:
        """Rate of the day's busiest hour: as chosen, or what `peak_replicas` of the parent sustain."""
        from simulations.bounds import capacity_rps

        if self.settings.peak_rps is not None:
            return self.settings.peak_rps
        parent = self.variants()[0].name
        one = capacity_rps(
            self.settings.day(1.0),
            self.latency_models()[parent],
            self.settings.engine,
            self.settings.slo,
        )
        return round(self.settings.peak_replicas * one, 3)

    def tuning(self) -> Tuning:
        """What the search found."""
        return Tuning.read(self.pipeline.folder("tune"))

    def verification(self) -> Verification:
        """Predicted against measured."""
        return Verification.read(self.pipeline.folder("verify"))

    def article_plan(self) -> Plan:
        """The autoscaler of the article: GPU utilisation 70 % and latency 300 ms."""
        hpa = HpaSpec(
            max_replicas=4 * int(self.settings.peak_replicas + 1),
            metrics=(pods_metric(GPU_UTILISATION, 70), pods_metric(TTFT_MEAN, 0.3)),
        )
        return Plan(
            name="article",
            variant=self.variants()[0],
            engine=self.settings.engine,
            slo=self.settings.slo,
            hpa=hpa,
            gpu_usd_per_hour=self.settings.gpu_usd_per_hour,
        )

    @contextmanager
    def trail(self) -> Iterator[PipelineRun]:
        """The MLflow run of this pipeline."""
        with Tracker(self.pipeline.workdir).pipeline_run("pipeline", self.settings) as run:
            yield run


def _listed(folder: Path) -> list[Path]:
    listing = folder / "results.txt"
    if not listing.exists():
        raise InputError(f"{folder} holds no results", remedy="Run `workbench demo` first.")
    return [folder / line for line in listing.read_text().split()]


def _list(folder: Path, names: list[str]) -> None:
    (folder / "results.txt").write_text("\n".join(names) + "\n")


def _compress(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
    results = Results(pipeline)
    chosen = results.settings
    variants = compress(
        chosen.model_path(),
        folder,
        seed=chosen.seed,
        distil_tokens=chosen.distil_tokens,
        quality_tokens=chosen.quality_tokens,
        quality_tasks=chosen.quality_tasks,
        on_progress=on_progress,
    )
    for variant in variants:
        variant.write(folder / f"{variant.name}.json")
    _list(folder, [f"{variant.name}.json" for variant in variants])
    with results.trail() as run:
        for variant in variants:
            run.variant(variant)


def _sweep(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
    results = Results(pipeline)
    chosen = results.settings
    points = sweep_batches(
        results.variants(),
        engine_args=chosen.engine,
        batches=chosen.batches,
        prompt_tokens=chosen.sweep_tokens,
        output_tokens=chosen.sweep_tokens,
        repeats=chosen.repeats,
        folder=folder,
        seed=chosen.seed,
        on_progress=on_progress,
    )
    _keep(results, folder, points)


def _keep(results: Results, folder: Path, points: list[Measurement]) -> None:
    _list(folder, [point.name for point in points])
    with results.trail() as run:
        for point in points:
            run.measurement(point, folder / point.name)
        run.sweeps(points)


def served(results: Results) -> list[Variant]:
    """The variants that are worth a server: the parent, then the fastest that keep enough quality."""
    chosen = results.settings
    parent, *others = results.variants()
    speed = frame(results.measurements("sweep")).groupby("variant")["output_tokens_per_s"].max()
    kept = [
        variant
        for variant in others
        if variant.quality is None
        or 1 - variant.quality.relative_task_accuracy <= chosen.slo.max_quality_loss
    ]
    kept.sort(key=lambda variant: -speed[variant.name])
    return [parent, *kept][: chosen.served_variants]


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
        shares = [round(share * fastest / lengths, 2) for share in chosen.load_shares]
        points += sweep_rates(
            variant,
            chosen.load(1.0),
            rates_rps=chosen.rates_rps or shares,
            engine_args=chosen.engine,
            folder=folder,
            seed=chosen.seed,
            on_progress=part,
        )
    _keep(results, folder, points)


def _fit(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
    results = Results(pipeline)
    offline, server = results.measurements("sweep"), results.measurements("serve")
    models: list[LatencyModel] = []
    with_server = [v for v in results.variants() if any(m.variant.name == v.name for m in server)]
    # Those behind a server first: the others borrow their overheads.
    order = with_server + [v for v in results.variants() if v not in with_server]
    for number, variant in enumerate(order):
        on_progress(variant.name, number / len(order))
        own = [m for m in offline + server if m.variant.name == variant.name and not m.invalid]
        borrowed = None if variant in with_server else models[0]
        models.append(
            fit(
                own,
                seed=results.settings.seed,
                overheads_from=borrowed,
                cold_start=borrowed.cold_start if borrowed else None,
            )
        )
        models[-1].write(folder / f"{variant.name}.json")
    _list(folder, [f"{model.variant}.json" for model in models])
    with results.trail() as run:
        for model in models:
            run.fit(model)


def _simulate(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
    from simulations.simulate import simulate

    results = Results(pipeline)
    plan = results.article_plan()
    result = simulate(
        plan,
        results.settings.day(results.peak_rps()),
        results.latency_models()[plan.variant.name],
        seeds=results.settings.tune_seeds,
        on_progress=on_progress,
    )
    day_table(result, plan).to_parquet(folder / "day.parquet")
    result.timeline.to_parquet(folder / "timeline.parquet")


def day_table(result: SimResult, plan: Plan) -> pd.DataFrame:
    """A simulated day as rows of metric, value and interval, the limits beside them."""
    limits = plan.slo.limits()
    return pd.DataFrame(
        [
            {
                "plan": plan.name,
                "metric": name,
                "value": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "limit": limits.get(name, float("nan")),
            }
            for name, estimate in result.metrics.items()
        ]
    )


def _tune(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
    results = Results(pipeline)
    chosen = results.settings
    models = results.latency_models()
    tuning = tune(
        [Candidate(variant=v, latency=models[v.name]) for v in results.variants()],
        chosen.day(results.peak_rps()),
        chosen.slo,
        engine=chosen.engine,
        space=_SHIPPABLE,
        trials=chosen.trials,
        seeds=chosen.tune_seeds,
        unseen_seeds=chosen.unseen_seeds,
        storage=folder / "study.db",
        seed=chosen.seed,
        gpu_usd_per_hour=chosen.gpu_usd_per_hour,
        on_progress=on_progress,
    )
    tuning.write(folder)
    with results.trail() as run:
        run.tune(tuning)


def _export(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
    results = Results(pipeline)
    tuning = results.tuning()
    on_progress(tuning.winner.name, 0.1)
    runs = Tracker(pipeline.workdir).runs()
    winner = tuning.winner.variant.name
    points = results.measurements("sweep") + results.measurements("serve")
    evidence = Evidence.of(
        measurements=[point for point in points if point.variant.name == winner],
        latency=results.latency_models()[winner],
        tuning=tuning,
        mlflow_run_ids=tuple(sorted(runs["run_id"])),
    )
    bundle = export(tuning.winner, folder / "bundle", evidence=evidence)
    with results.trail() as run:
        run.export(bundle, tuning.winner)


def _verify(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
    results = Results(pipeline)
    verification = verify(
        pipeline.folder("export") / "bundle", folder=folder, on_progress=on_progress
    )
    verification.write(folder)
    with results.trail() as run:
        run.verify(verification)


def _report(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
    from workbench.report import ReportData, report

    results = Results(pipeline)
    on_progress("figures", 0.2)
    page = report(
        ReportData(
            title="LLM serving: what to deploy, and why",
            variants=tuple(results.variants()),
            measurements=tuple(results.measurements("sweep") + results.measurements("serve")),
            latency_models=tuple(results.latency_models().values()),
            tuning=results.tuning(),
            verification=results.verification(),
            settings=results.settings.model_dump(mode="json"),
            command=f"workbench demo --workdir {pipeline.workdir.name}",
        ),
        pipeline.workdir / "report.html",
    )
    with results.trail() as run:
        run.artifact(page)


_LOAD = ("load_shares", "rates_rps", "load_duration_s", "served_variants", "slo")
_DAY = ("slo", "profile", "length_divisor", "peak_rps", "peak_replicas", "day_duration_s")
STAGES = (
    Stage(
        "compress",
        "Compress: INT8, pruned and distilled; quality",
        "compress",
        ("seed", "distil_tokens", "quality_tokens", "quality_tasks"),
        (),
        _compress,
        apart=True,
    ),
    Stage(
        "sweep",
        "Measure: batch sweep, offline vLLM",
        "measure",
        ("seed", "engine", "batches", "sweep_tokens", "repeats"),
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
        (),
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
        (*_DAY, "gpu_usd_per_hour", "tune_seeds", "trials", "unseen_seeds"),
        ("fit",),
        _tune,
    ),
    Stage("export", "Export: the bundle", "export", (), ("tune",), _export),
    Stage("verify", "Verify: the bundle on real vLLM", "verify", (), ("export",), _verify),
    Stage("report", "Report: one HTML page", "report", (), ("verify",), _report),
)


def table(pipeline: Pipeline, name: str) -> pd.DataFrame:
    """What a stage found, in the few columns that a reader needs."""
    results = Results(pipeline)
    match name:
        case "compress":
            return variant_table(results.variants())
        case "sweep" | "serve":
            return measurement_table(results.measurements("sweep") + results.measurements("serve"))
        case "fit":
            return latency_table(list(results.latency_models().values()))
        case "simulate":
            return pd.read_parquet(pipeline.folder("simulate") / "day.parquet")
        case "verify":
            return results.verification().rows
        case "export":
            bundle = pipeline.folder("export") / "bundle"
            files = sorted(path for path in bundle.rglob("*") if path.is_file())
            return pd.DataFrame(
                {
                    "file": [str(path.relative_to(bundle)) for path in files],
                    "bytes": [path.stat().st_size for path in files],
                }
            )
        case _:
            return fleet_table(results.tuning())


def variant_table(variants: list[Variant]) -> pd.DataFrame:
    """Size and quality of each variant."""
    rows = []
    for variant in variants:
        row = {"variant": variant.name, "made_by": variant.method, "mib": variant.size_mib}
        if variant.quality is not None:
            row |= {
                "perplexity": variant.quality.perplexity.value,
                "agreement": variant.quality.agreement.value,
                "task_accuracy": variant.quality.task_accuracy.value,
                "of_parent": variant.quality.relative_task_accuracy,
            }
        rows.append(row)
    return pd.DataFrame(rows)


def measurement_table(points: list[Measurement]) -> pd.DataFrame:
    """Throughput and latency at each load, repeats averaged."""
    columns = ["output_tokens_per_s", "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "e2e_p99_s"]
    keys = ["mode", "variant", "batch", "rate_rps"]
    return frame(points).groupby(keys, dropna=False, sort=False)[columns].mean().reset_index()


def latency_table(models: list[LatencyModel]) -> pd.DataFrame:
    """Coefficients in microseconds, and the errors on steps that were held out."""
    return pd.DataFrame(
        [
            {
                "variant": model.variant,
                "floor_us": model.floor_s * 1e6,
                "base_us": model.base_s * 1e6,
                "per_prefill_token_us": model.per_prefill_token_s * 1e6,
                "per_decode_seq_us": model.per_decode_seq_s * 1e6,
                "per_kv_token_us": model.per_kv_token_s * 1e6,
                **{f"heldout_{key}": error.value for key, error in model.heldout_error.items()},
            }
            for model in models
        ]
    )


def fleet_table(tuning: Tuning) -> pd.DataFrame:
    """The winner beside the baselines, on traffic that the search had not seen."""
    shown = tuning.table()[
        ["name", "gpu_hours", "cost_usd", "ttft_p99_s", "slo_attainment", "keeps_slo"]
    ]
    return shown.rename(
        columns={
            "name": "fleet",
            "gpu_hours": "gpu_hours_per_day",
            "cost_usd": "usd_per_day",
        }
    ).reset_index(drop=True)
