"""The stages of the pipeline as commands, each on one data directory."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.errors import InputError
from workbench.cli.common import (
    DEFAULT_WORKDIR,
    AsJson,
    Debug,
    E2e,
    Model,
    Numbers,
    PeakRps,
    Seed,
    Tpot,
    Ttft,
    Workdir,
    display,
    guarded,
    leave,
    numbers,
    show,
    tell_doubts,
)
from workbench.cli.fitting import check_fitted, fit_device
from workbench.cli.loads import EngineJson
from workbench.cli.pipelines import open_pipeline, run_stages, settings_of, tell_pipeline_doubts
from workbench.cli.runs import track

if TYPE_CHECKING:
    from workbench.settings import Settings

Forced = Annotated[
    bool | None,
    typer.Option(
        "--force/--no-force",
        help="Use measurements that cannot be trusted; every result then says so.",
        show_default="as before",
    ),
]

app = typer.Typer()


def _simulate_plan(
    workdir: Path,
    settings: Settings,
    path: Path,
    latency: Path | None,
    draws: int,
    *,
    as_json: bool,
) -> None:
    """Simulate the day of these settings under somebody's plan, on a fitted model or on one given."""
    from serving.plan import Plan
    from simulations.latency import LatencyModel

    plan = Plan.read(path)
    pipeline = open_pipeline(workdir, settings)
    from simulations.simulate import simulate as simulate_day
    from workbench.results import Results, peak_of
    from workbench.tables import day_table

    results = Results(pipeline)
    if latency is not None:
        model = LatencyModel.load(latency)
        peak_rps = peak_of(settings, model, plan.engine)
    else:
        pipeline.require("simulate")
        models = results.latency_models()
        if plan.variant.name not in models:
            raise InputError(
                f"{path} serves variant(={plan.variant.name!r}), which was not fitted",
                remedy=f"Fitted are {sorted(models)}; measure and fit it first.",
            )
        model, peak_rps = models[plan.variant.name], results.peak_rps()
    day = settings.day(peak_rps)
    with display(pipeline.workdir, f"Simulate {plan.name}", as_json=as_json) as on_progress:
        result = simulate_day(
            plan,
            day,
            model,
            seeds=settings.tune_seeds,
            draws=draws,
            force=settings.force,
            on_progress=on_progress,
        )
    show(day_table(result, plan), as_json=as_json)
    tell_doubts(result.doubts, "rests on what cannot be trusted")


def _verify_bundle(workdir: Path, bundle: Path, url: str | None, *, as_json: bool) -> None:
    """Verify a bundle that lies anywhere, where it runs or started here."""
    pipeline = open_pipeline(workdir, settings_of(None))
    from workbench.export import check
    from workbench.measure.vllm_attached import AttachedEngine
    from workbench.verify import verify as verify_bundle

    with (
        display(pipeline.workdir, f"Verify {bundle}", as_json=as_json) as on_progress,
        AttachedEngine(url, check(bundle).variant.name) if url else nullcontext() as engine,
    ):
        found = verify_bundle(
            bundle, folder=workdir / "verify-bundle", engine=engine, on_progress=on_progress
        )
    found.write(workdir / "verify-bundle")
    track(pipeline.workdir, lambda tracker: tracker.verification(found))
    show(found.rows, as_json=as_json)
    if not found.holds:
        leave(1)


def _check_bundle(bundle: Path, max_age_days: float | None, *, as_json: bool) -> None:
    """Validate a bundle that lies anywhere, and say what ops still have to pin."""
    import pandas as pd

    from serving.manifests import images
    from workbench.export import check

    plan = check(bundle, max_age_days=max_age_days)
    unset = [name for name, image in images.of_bundle(bundle).items() if image is None]
    row = {
        "bundle": str(bundle),
        "plan": plan.name,
        "variant": plan.variant.name,
        "holds": True,
        "images_to_pin": ", ".join(unset) or "none",
    }
    show(pd.DataFrame([row]), as_json=as_json)


@app.command(epilog="Example: workbench demo --workdir runs --ttft-p99 0.5")
@guarded
def demo(
    workdir: Workdir = DEFAULT_WORKDIR,
    model: Model = None,
    seed: Seed = None,
    ttft_p99: Ttft = None,
    tpot_p99: Tpot = None,
    e2e_p99: E2e = None,
    peak_rps: PeakRps = None,
    trials: Annotated[int | None, typer.Option(help="Trials of the search.")] = None,
    quick: Annotated[bool, typer.Option(help="Reduced sizes: a look, not a result.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run the whole pipeline once on real vLLM; a second run resumes where the last one stopped."""
    from workbench.settings import QUICK

    chosen: dict[str, Any] = dict(QUICK) if quick else {}
    chosen |= {"model": model, "seed": seed, "peak_rps": peak_rps}
    chosen |= {"ttft_p99_s": ttft_p99, "tpot_p99_s": tpot_p99, "e2e_p99_s": e2e_p99}
    if trials is not None:
        chosen["trials"] = trials
    # Not those of an earlier run: `demo` after `demo --quick` is a whole demo.
    run_stages(workdir, settings_of(None, **chosen), [], as_json=as_json)


@app.command(epilog="Example: workbench measure --batches 1,8,32 --rates 2,5,10 --duration-s 20")
@guarded
def measure(
    workdir: Workdir = DEFAULT_WORKDIR,
    model: Model = None,
    batches: Numbers = None,
    rates: Numbers = None,
    duration_s: Annotated[float | None, typer.Option(help="Length of each load.")] = None,
    seed: Seed = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Sweep batch sizes offline, then send open-loop Poisson load to a real vLLM server."""
    sizes = numbers("--batches", batches)
    settings = settings_of(
        workdir,
        model=model,
        batches=tuple(map(int, sizes)) if sizes else None,
        rates_rps=numbers("--rates", rates),
        load_duration_s=duration_s,
        seed=seed,
    )
    run_stages(workdir, settings, ["sweep", "serve"], as_json=as_json)


@app.command(
    epilog="Examples: workbench fit --workdir runs · workbench fit --check · "
    "workbench fit --device h100 --config my-model/config.json --out assumed.json"
)
@guarded
def fit(
    workdir: Workdir = DEFAULT_WORKDIR,
    force: Forced = None,
    check: Annotated[
        bool, typer.Option("--check", help="Say in words which term dominates where.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(help="Measure nothing: assume a device card (h100, h200, a100, l40s, l4)."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="With --device: a config.json.")] = None,
    engine: EngineJson = None,
    out: Annotated[
        Path | None, typer.Option(help="With --device: where to write the model.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Fit a latency model per variant to the engine's own step log, or assume one."""
    if device is not None:
        fit_device(device, config, engine, out, as_json=as_json)
        return
    for name, given in (("--config", config), ("--engine", engine), ("--out", out)):
        if given is not None:
            raise InputError(f"{name}(={str(given)!r}) needs --device", remedy="Leave it out.")
    settings = settings_of(workdir, force=force)
    if not check:
        run_stages(workdir, settings, ["fit"], as_json=as_json)
        return
    pipeline = open_pipeline(workdir, settings)
    pipeline.run(["fit"], to_stderr=True)
    check_fitted(pipeline, as_json=as_json)
    tell_pipeline_doubts(pipeline, "fit")


@app.command(
    epilog="Examples: workbench simulate --peak-rps 40 --ttft-p99 0.5 · "
    "workbench simulate --plan my-plan.json --latency assumed.json"
)
@guarded
def simulate(
    workdir: Workdir = DEFAULT_WORKDIR,
    peak_rps: PeakRps = None,
    ttft_p99: Ttft = None,
    tpot_p99: Tpot = None,
    e2e_p99: E2e = None,
    plan: Annotated[Path | None, typer.Option(help="A plan.json; else rules of practice.")] = None,
    latency: Annotated[
        Path | None, typer.Option(help="With --plan: a latency model instead of the fitted one.")
    ] = None,
    draws: Annotated[
        int,
        typer.Option(
            min=0,
            help="With --plan: days with other coefficients that fit as well, for the intervals.",
        ),
    ] = 5,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Simulate a day of traffic on a fleet: the article's autoscaler, or a plan of yours."""
    settings = settings_of(
        workdir, peak_rps=peak_rps, ttft_p99_s=ttft_p99, tpot_p99_s=tpot_p99, e2e_p99_s=e2e_p99
    )
    if plan is not None:
        _simulate_plan(workdir, settings, plan, latency, draws, as_json=as_json)
    elif latency is not None:
        raise InputError(f"--latency(={str(latency)!r}) needs --plan", remedy="Give a plan.json.")
    else:
        run_stages(workdir, settings, ["simulate"], as_json=as_json)


@app.command(
    epilog="Examples: workbench tune --trials 100 --ttft-p99 0.3 · "
    "workbench tune --trials 1000 --ray 10.0.0.1:6379 --at-once 32"
)
@guarded
def tune(
    workdir: Workdir = DEFAULT_WORKDIR,
    trials: Annotated[int | None, typer.Option(help="Trials of the search.")] = None,
    space: Annotated[
        Path | None,
        typer.Option(help="YAML or JSON file: parameters of the search, fixed or freed."),
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="tpe, gp or random.", show_default="tpe")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="cost under the SLO, or front: cost against attainment.", show_default="cost"
        ),
    ] = None,
    random_baseline: Annotated[
        bool | None,
        typer.Option(
            "--random-baseline",
            help="Search at random too, with as many trials, to compare: twice the work.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Address of a Ray cluster, or auto: its CPUs run the trials.",
            show_default="this machine's cores",
        ),
    ] = None,
    at_once: Annotated[
        int | None,
        typer.Option(
            help="Trials asked for together, on which the result depends; more workers idle.",
            show_default="4",
        ),
    ] = None,
    peak_rps: PeakRps = None,
    ttft_p99: Ttft = None,
    tpot_p99: Tpot = None,
    e2e_p99: E2e = None,
    seed: Seed = None,
    force: Forced = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find the autoscaler with the fewest GPU hours that keeps the SLO."""
    from workbench.settings import SHIPPABLE
    from workbench.tune import SearchSpace

    settings = settings_of(
        workdir,
        trials=trials,
        sampler=sampler,
        objective=objective,
        random_baseline=random_baseline,
        ray=ray,
        trials_at_once=at_once,
        space=None if space is None else SearchSpace.read_file(space, SHIPPABLE),
        peak_rps=peak_rps,
        ttft_p99_s=ttft_p99,
        tpot_p99_s=tpot_p99,
        e2e_p99_s=e2e_p99,
        seed=seed,
        force=force,
    )
    run_stages(workdir, settings, ["tune"], as_json=as_json)


@app.command(
    epilog="Examples: workbench export --workdir runs · workbench export --check runs/export/bundle"
)
@guarded
def export(
    workdir: Workdir = DEFAULT_WORKDIR,
    check: Annotated[
        Path | None, typer.Option(help="Validate this bundle instead of writing one.")
    ] = None,
    max_age_days: Annotated[
        float | None,
        typer.Option(
            min=0, help="With --check: refuse older measurements.", show_default="any age"
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write the winner as a bundle directory: plan, evidence, gateway, Kubernetes, monitoring."""
    if check is None and max_age_days is not None:
        raise InputError(
            f"max_age_days(={max_age_days:g}) is asked of a bundle", remedy="Name it by --check."
        )
    if check is None:
        run_stages(workdir, settings_of(workdir), ["export"], as_json=as_json)
        return
    _check_bundle(check, max_age_days, as_json=as_json)


@app.command(
    epilog="Example: workbench verify --bundle runs/export/bundle --url http://gateway:8080"
)
@guarded
def verify(
    workdir: Workdir = DEFAULT_WORKDIR,
    bundle: Annotated[Path | None, typer.Option(help="Another bundle directory.")] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="A gateway that serves the bundle; $OPENAI_API_KEY is sent.",
            show_default="one is started here",
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Start the bundle, replay load through its gateway, print predicted against measured.

    Exit status 1 where the prediction does not hold.
    """
    if url is not None and bundle is None:
        raise InputError(f"url(={url!r}) says where, not what", remedy="Name the --bundle too.")
    if bundle is None:
        run_stages(workdir, settings_of(workdir), ["verify"], as_json=as_json)
    else:
        _verify_bundle(workdir, bundle, url, as_json=as_json)


@app.command(epilog="Example: workbench report --workdir runs")
@guarded
def report(
    workdir: Workdir = DEFAULT_WORKDIR, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Write report.html: one self-contained page with every figure."""
    run_stages(workdir, settings_of(workdir), ["report"], as_json=as_json)
