"""Studies: the grid, resuming, engines that die, and where points run."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import batching
from serving.errors import InputError
from serving.plan import EngineArgs, Variant
from workbench.measure import Measurement
from workbench.measure.points import Failure
from workbench.measure.spread import Where
from workbench.measure.study import Study, StudyResult, read_study, run_study
from workbench.payoff import Question
from workbench.report.study_figures import study_figures, study_page

from . import engines
from .engines import DEADLY_BATCH, dying, killed, log, measured, noted, refusing
from .support import ENGINE, toy_variant


def study(**changes: object) -> Study:
    chosen = {
        "name": "small",
        "question": "How much does a batch give?",
        "engine": ENGINE,
        "lengths": ((20, 4),),
        "concurrency": (1, 2, 5),
        **changes,
    }
    return Study.model_validate(chosen)


def test_the_grid_is_every_combination_that_vllm_takes(variant: Variant) -> None:
    grid = study(
        engine_grid={"max_num_seqs": (8, 512), "max_num_batched_tokens": (256, 512)},
        lengths=((20, 4), (200, 100)),
        repeats=2,
    )
    # 512 sequences need a budget of 512 tokens; 300 tokens do not fit into a context of 256.
    assert [label for label, _ in grid.engines()] == [
        "-mns8-mnbt256",
        "-mns8-mnbt512",
        "-mns512-mnbt512",
    ]
    groups = grid.points([variant])
    assert [len(group) for group in groups] == [6, 6, 6]
    names = [point.name for group in groups for point in group]
    assert len(set(names)) == 18
    assert names[0] == "toy-mns8-mnbt256-20x4-batch1-repeat0"


def test_a_shared_prefix_is_an_axis(variant: Variant, tmp_path: Path) -> None:
    asked = study(shared_prefix_tokens=(0, 64, 240), concurrency=(2,))
    # 240 tokens before 20 and 4 do not fit into a context of 256.
    found = run_study(asked, [variant], folder=tmp_path, start=noted)
    assert [m.name for m in found.measurements] == [
        "toy-20x4-batch2-repeat0",
        "toy-64+20x4-batch2-repeat0",
    ]
    table = found.frame()
    assert table["shared_prefix_tokens"].tolist() == [0, 64]
    assert [set(m.requests["prompt_tokens"]) for m in found.measurements] == [{20}, {84}]
    assert len(found.gains(2, over=2)) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shared_prefix_tokens": (-1,)}, "shared_prefix_tokens"),
        ({"engine_grid": {"max_seqs": (1,)}}, "engine_grid"),
        ({"concurrency": ()}, "at least one of concurrency and rates_rps"),
        ({"rates_rps": (1.0,)}, "must go with mode 'server'"),
        ({"batches": (1,)}, "Extra inputs"),
    ],
)
def test_a_study_that_cannot_be_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        study(**changes)


def test_studies_that_are_shipped_can_be_read() -> None:
    folder = Path(__file__).parents[3] / "experiments"
    # Searches are declared there as well; tests/workbench/test_cli_examples.py reads those.
    declared = sorted(set(folder.glob("*.yaml")) - set(folder.glob("autoscaling*.yaml")))
    assert declared
    for path in declared:
        payoff = path.name.startswith("payoff")
        assert (Question.load(path).study if payoff else Study.load(path)).engines()


def test_a_file_that_is_no_study_is_named(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("name: x\nquestion: why\nconcurency: [1]\n")
    with pytest.raises(InputError, match=r"wrong\.yaml is not a study"):
        Study.load(tmp_path / "wrong.yaml")
    with pytest.raises(InputError, match="cannot read"):
        Study.load(tmp_path / "nothing.yaml")


def test_each_engine_starts_once_and_a_second_run_starts_none(
    variant: Variant, tmp_path: Path
) -> None:
    grid = study(engine_grid={"max_num_seqs": (8, 16)})
    result = run_study(grid, [variant], folder=tmp_path / "runs", start=noted)
    assert [m.name for m in result.measurements] == [
        p.name for group in grid.points([variant]) for p in group
    ]
    assert log(variant).count("start") == 2
    before = log(variant)
    again = run_study(grid, [variant], folder=tmp_path / "runs", start=noted)
    assert log(variant) == before
    assert [m.name for m in again.measurements] == [m.name for m in result.measurements]
    assert {m.name for m in read_study(tmp_path / "runs").measurements} == {
        m.name for m in result.measurements
    }


def test_kill_9_loses_at_most_the_point_in_flight(variant: Variant, tmp_path: Path) -> None:
    grid = study(concurrency=(1, 2, 3, 5, 6, 7))
    program = (
        "from pathlib import Path\n"
        "from serving.plan import Variant\n"
        "from tests.workbench.measure.engines import slow\n"
        "from workbench.measure.study import Study, run_study\n"
        f"variant = Variant.model_validate_json({variant.model_dump_json()!r})\n"
        f"study = Study.model_validate_json({grid.model_dump_json()!r})\n"
        f"run_study(study, [variant], folder=Path({str(tmp_path / 'runs')!r}), start=slow)\n"
    )
    running = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[3])
    deadline_s = time.monotonic() + 60
    while len(measured(variant)) < 3:
        assert running.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    time.sleep(0.5)  # a worker that outlived it would go on here
    kept = list((tmp_path / "runs").glob("*/measurement.json"))
    begun = measured(variant)
    assert len(begun) - 1 <= len(kept) < 6
    result = run_study(grid, [variant], folder=tmp_path / "runs", start=noted)
    assert len(result.measurements) == 6
    assert not result.failures
    # Nothing that was kept is measured again.
    assert len(measured(variant)) - len(begun) == 6 - len(kept)


def test_an_engine_that_dies_fails_its_point_with_the_cause_and_the_rest_goes_on(
    variant: Variant, tmp_path: Path
) -> None:
    grid = study(concurrency=(1, DEADLY_BATCH, 5))
    result = run_study(grid, [variant], folder=tmp_path, start=dying)
    assert [m.batch for m in result.measurements] == [1, 5]
    [failure] = result.failures
    assert failure.name == "toy-20x4-batch4-repeat0"
    assert "CUDA out of memory" in failure.cause
    assert log(variant).count("start") == 2
    # What failed stays failed, until it is asked for again.
    assert len(run_study(grid, [variant], folder=tmp_path, start=noted).failures) == 1
    assert log(variant).count("start") == 2
    retried = run_study(grid, [variant], folder=tmp_path, start=noted, retry_failed=True)
    assert not retried.failures
    assert [m.batch for m in retried.measurements] == [1, DEADLY_BATCH, 5]
    assert not list(tmp_path.glob("*/failed.json"))


def test_a_worker_that_is_killed_is_replaced(variant: Variant, tmp_path: Path) -> None:
    grid = study(concurrency=(1, DEADLY_BATCH, 5))
    result = run_study(grid, [variant], folder=tmp_path, start=killed)
    assert [m.batch for m in result.measurements] == [1, 5]
    [failure] = result.failures
    assert "SIGKILL" in failure.cause


def test_an_engine_that_does_not_start_fails_its_points_alone(
    variant: Variant, tmp_path: Path
) -> None:
    grid = study(engine_grid={"max_num_seqs": (16, 8)}, concurrency=(1, 2))
    result = run_study(grid, [variant], folder=tmp_path, start=refusing)
    assert [f.engine.max_num_seqs for f in result.failures] == [16, 16]
    assert [m.engine.max_num_seqs for m in result.measurements] == [8, 8]
    assert result.failures[0].remedy == "Free memory."


def test_groups_spread_over_gpus_each_on_its_own(tmp_path: Path) -> None:
    variant = toy_variant(tmp_path / "toy")
    grid = study(engine_grid={"max_num_seqs": (8, 16, 32, 64)}, concurrency=(1, 2))
    run_study(
        grid, [variant], folder=tmp_path / "runs", start=engines.slow, where=Where(gpus=(0, 1))
    )
    lines = (Path(variant.model) / "runs.log").read_text().splitlines()
    starts = [line.split()[:2] for line in lines if line.endswith("start")]
    assert len(starts) == 4
    assert {device for _, device in starts} == {"0", "1"}
    # One process for each GPU, whatever it measures.
    assert len({tuple(pair) for pair in starts}) == 2


def test_tensor_parallel_engines_get_as_many_gpus_as_they_need(tmp_path: Path) -> None:
    variant = toy_variant(tmp_path / "toy")
    grid = study(engine_grid={"tensor_parallel_size": (1, 2)}, concurrency=(1,))
    run_study(grid, [variant], folder=tmp_path / "runs", start=noted, where=Where(gpus=(4, 5)))
    lines = (Path(variant.model) / "runs.log").read_text().splitlines()
    assert {line.split()[1] for line in lines} == {"4", "4,5"}
    with pytest.raises(InputError, match="needs more GPUs than the 1 here"):
        run_study(
            study(engine=ENGINE.model_copy(update={"tensor_parallel_size": 4})),
            [variant],
            folder=tmp_path / "more",
            start=noted,
            where=Where(gpus=(0,)),
        )


def test_a_study_whose_requests_fit_nowhere_is_refused(variant: Variant, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no point that its engines can hold"):
        run_study(study(lengths=((300, 4),)), [variant], folder=tmp_path, start=noted)


@pytest.mark.slow
def test_on_a_ray_cluster_of_two_nodes_each_group_has_a_node(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "resources": {"one": 1}}
    )
    cluster.add_node(num_cpus=1, resources={"two": 1})
    variant = toy_variant(tmp_path / "toy")
    grid = study(engine_grid={"max_num_seqs": (8, 16, 32)}, concurrency=(1, 2))
    try:
        result = run_study(
            grid,
            [variant],
            folder=tmp_path / "runs",
            start=noted,
            where=Where(ray=cluster.address),
        )
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert len(result.measurements) == 6
    # They are on this disk, whichever node measured them.
    assert all(
        isinstance(Measurement.read(tmp_path / "runs" / m.name), Measurement)
        for m in result.measurements
    )
    assert log(variant).count("start") == 3


def test_without_a_cluster_the_remedy_is_said(variant: Variant, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match="no cluster answers there"):
        run_study(study(), [variant], folder=tmp_path, start=noted, where=Where(ray="127.0.0.1:9"))


def test_engine_arguments_reach_the_engine_of_the_point(variant: Variant, tmp_path: Path) -> None:
    grid = study(engine_grid={"kv_cache_dtype": ("auto", "fp8")}, concurrency=(1,))
    result = run_study(grid, [variant], folder=tmp_path, start=noted)
    assert [m.engine.kv_cache_dtype for m in result.measurements] == ["auto", "fp8"]
    assert EngineArgs(kv_cache_dtype="fp8").cli().count("--kv-cache-dtype") == 1


def with_times(variant: Variant, folder: Path, factors: dict[int, float]) -> StudyResult:
    """Two repeats of batches 1 and 5 on two engines; repeat r took factors[r] of the time."""
    found = run_study(
        study(concurrency=(1, 5), repeats=2, engine_grid={"max_num_seqs": (8, 16)}),
        [variant],
        folder=folder,
        start=noted,
    )
    timed = []
    for m in found.measurements:
        slower = factors[m.workload.seed] if m.batch == 5 else 1.0
        table = m.requests.assign(scheduled_s=0.0, sent_s=0.0, first_token_s=slower)
        tokens = table["output_tokens"].sum()
        timed.append(replace(m, requests=table.assign(end_s=slower * tokens / m.batch)))
    return replace(found, measurements=timed)


def test_gains_of_a_batch_with_their_interval(variant: Variant, tmp_path: Path) -> None:
    """By hand: 5 x and 5 / 1.21 x, so 5 / 1.1 x, and t(0.975, 1) = 12.706 on the logarithms."""
    result = with_times(variant, tmp_path, {0: 1.0, 1: 1.21})
    gains = result.gains(5, over=1)
    assert gains["max_num_seqs"].tolist() == ["8", "16"]
    assert gains["repeats"].tolist() == [2, 2]
    assert gains["gain"].to_numpy() == pytest.approx(5 / 1.1)
    assert gains["high"].to_numpy() == pytest.approx(5 / 1.1 * 1.1**12.706, rel=1e-3)
    assert (gains["low"] * gains["high"]).to_numpy() == pytest.approx((5 / 1.1) ** 2)
    assert result.gains(64, over=1).empty


def test_gains_leave_out_what_cannot_be_trusted(variant: Variant, tmp_path: Path) -> None:
    result = with_times(variant, tmp_path, {0: 1.0, 1: 1.21})
    points = [m.judged(["late"]) if m.workload.seed == 1 else m for m in result.measurements]
    gains = replace(result, measurements=points).gains(5, over=1)
    assert gains["gain"].to_numpy() == pytest.approx(5)
    assert gains["low"].isna().all()


def test_the_page_shows_every_line_and_what_is_missing(variant: Variant, tmp_path: Path) -> None:
    result = with_times(variant, tmp_path, {0: 1.0, 1: 1.21})
    first = result.measurements[0]
    failure = Failure(
        name="gone",
        variant=variant,
        engine=first.engine,
        workload=first.workload,
        cause="out of <memory>",
    )
    doubted = [first.judged(["late by 9 ms"]), *result.measurements[1:]]
    throughput, latency = study_figures(result)
    assert [line.name for line in throughput.data] == [
        "20 → 4 tokens, max_num_seqs=8",
        "20 → 4 tokens, max_num_seqs=16",
    ]
    assert throughput.data[0].y[1] == pytest.approx((5 + 5 / 1.21) / 2, rel=1e-6)
    assert latency.layout.yaxis.title.text == "TPOT p50 (ms)"
    page = study_page(
        replace(result, measurements=doubted, failures=[failure]), tmp_path / "a.html"
    ).read_text()
    assert "How much does a batch give?" in page
    assert "out of &lt;memory&gt;" in page
    assert f"{first.name}: late by 9 ms" in page
    assert first.environment.describe() in page


def test_the_committed_study_answers_the_articles_claim(tmp_path: Path) -> None:
    """Batch 1 to 32 gives 5x? On an H100 more, at every length and KV cache that was measured."""
    result = read_study(batching.RESULTS)
    assert len(result.measurements) == 72
    assert not [m.name for m in result.measurements if m.invalid]
    gains = result.gains(32, over=1)
    assert (gains["low"] > batching.CLAIM).all()
    assert "of 4 combinations 4 lie above 5x" in batching.answer(result)
    drawn = batching.figure(result)
    assert len(drawn.data) == 4
    assert list(drawn.data[0].x) == [2, 4, 8, 16, 32, 64, 128, 256]
