"""The results that lie in a data directory, and what follows from them alone."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from serving.errors import InfeasibleError, InputError
from serving.hpa import GPU_UTILISATION, TTFT_MEAN, HpaSpec, pods_metric
from serving.plan import EngineArgs, Plan, Variant
from simulations.latency import LatencyModel
from workbench.measure import Measurement, frame
from workbench.pipeline import Pipeline
from workbench.settings import Settings
from workbench.track import PipelineRun, Tracker, attempt
from workbench.tune import Tuning
from workbench.verify import Verification

UNTRUSTED = "untrusted.txt"
SHAPES = "shapes.txt"
"""Names of the points of other lengths, beside the results of the sweep."""


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

    def shapes(self) -> list[Measurement]:
        """Points of other lengths than the sweep's, measured for the fit alone."""
        folder = self.pipeline.folder("sweep")
        return [Measurement.read(folder / name) for name in _lines(folder / SHAPES)]

    def latency_models(self) -> dict[str, LatencyModel]:
        """By variant."""
        models = [LatencyModel.read(path) for path in _listed(self.pipeline.folder("fit"))]
        return {model.variant: model for model in models}

    def peak_rps(self) -> float:
        """Rate of the day's busiest hour: as chosen, or what `peak_replicas` of the parent sustain.

        Where a lone request breaks the SLO on the parent: of the first variant on which it does not.
        """
        models = self.latency_models()
        *others, last = (models[variant.name] for variant in self.variants())
        for model in others:
            with suppress(InfeasibleError):
                return peak_of(self.settings, model, self.settings.engine)
        return peak_of(self.settings, last, self.settings.engine)

    def tuning(self) -> Tuning:
        """What the search found."""
        return Tuning.read(self.pipeline.folder("tune"))

    def verification(self) -> Verification | None:
        """Predicted against measured; None where the replay could not be trusted."""
        if self.untrusted() is not None:
            return None
        return Verification.read(self.pipeline.folder("verify"))

    def untrusted(self) -> str | None:
        """Why the replay could not be trusted, if so."""
        path = self.pipeline.folder("verify") / UNTRUSTED
        return path.read_text() if path.exists() else None

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

    def trail(self, stage: str) -> None:
        """Log to MLflow what a stage left on disk; a store that fails costs one line."""
        workdir = self.pipeline.workdir
        with attempt(workdir), Tracker(workdir).pipeline_run("pipeline", self.settings) as run:
            self.log(run, stage)

    def log(self, run: PipelineRun, stage: str) -> None:
        """Log what a stage left on disk.

        Raises:  InputError: the stage left no whole result.
        """
        folder = self.pipeline.folder(stage)
        match stage:
            case "compress":
                for variant in self.variants():
                    run.variant(variant)
            case "sweep" | "serve":
                points = self.measurements(stage)
                for point in points + (self.shapes() if stage == "sweep" else []):
                    run.measurement(point, folder / point.name)
                run.sweeps(points, self.settings.gpu_usd_per_hour)
            case "fit":
                for model in self.latency_models().values():
                    run.fit(model)
            case "tune":
                run.tune(self.tuning())
            case "export":
                tuning = self.tuning()
                run_id = run.export(folder / "bundle", tuning.winner, tuning.doubts)
                latency = self.latency_models()[tuning.winner.variant.name]
                run.register(run_id, tuning.winner, latency, tuning.prediction.workload)
            case "verify":
                verification = self.verification()
                if verification is not None:
                    run.verify(verification)
            case "report":
                run.artifact(self.pipeline.workdir / "report.html")

    def run_ids(self) -> tuple[str, ...]:
        """The MLflow runs of this data directory; none where the store fails."""
        found: list[str] = []
        workdir = self.pipeline.workdir
        with attempt(workdir):
            runs = Tracker(workdir).runs()
            found = sorted(runs["run_id"]) if len(runs) else []
        return tuple(found)


def peak_of(settings: Settings, latency: LatencyModel, engine: EngineArgs) -> float:
    """Rate of the day's busiest hour: as chosen, or what `peak_replicas` on this model sustain."""
    from simulations.bounds import capacity_rps

    if settings.peak_rps is not None:
        return settings.peak_rps
    one = capacity_rps(settings.day(1.0), latency, engine, settings.slo)
    return round(settings.peak_replicas * one, 3)


def served(results: Results) -> list[Variant]:
    """The variants that are worth a server: the parent, then the fastest that keep enough quality."""
    chosen = results.settings
    parent, *others = results.variants()
    speed = frame(results.measurements("sweep")).groupby("variant")["output_tokens_per_s"].max()
    kept = [
        variant
        for variant in others
        if variant.quality is None
        or variant.quality.verdict(chosen.slo.max_quality_loss) != "loses"
    ]
    kept.sort(key=lambda variant: -speed[variant.name])
    return [parent, *kept][: chosen.served_variants]


def _listed(folder: Path) -> list[Path]:
    listing = folder / "results.txt"
    if not listing.exists():
        raise InputError(f"{folder} holds no results", remedy="Run `workbench demo` first.")
    return [folder / line for line in _lines(listing)]


def _lines(listing: Path) -> list[str]:
    return listing.read_text().split() if listing.exists() else []
