"""`workbench log` and `workbench runs`, on a store filled from disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from serving.errors import InputError
from serving.plan import EngineArgs
from workbench.measure.points import Failure
from workbench.measure.study import Study
from workbench.runs import choose, log_everything, studies_in
from workbench.settings import Settings
from workbench.track import list_runs

if TYPE_CHECKING:
    from conftest import Results

ROOT = Path(__file__).parents[2]
INVALID = "the client was late by 0.4 s"


@pytest.fixture(scope="module")
def workdir(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished compress, a sweep that was cut off, a study, a load, and what is unreadable."""
    home = tmp_path_factory.mktemp("work") / "my runs"
    Settings().write(home / "settings.json")
    compress = home / "compress"
    for variant in results.variants:
        variant.write(compress / f"{variant.name}.json")
    (compress / "results.txt").write_text("\n".join(f"{v.name}.json" for v in results.variants))
    (compress / "done.json").write_text("{}")
    for point in results.measurements[:3]:
        point.write(home / "sweep" / point.name)
    broken = home / "sweep" / "cut-off"
    broken.mkdir()
    (broken / "measurement.json").write_text('{"schema_version": 2, "na')

    study = Study(name="batching", question="Does it pay?", concurrency=(1, 4))
    study.write(home / "studies" / "batching" / "study.json")
    for at, point in enumerate(results.measurements[:12]):
        invalid = (INVALID,) if at == 0 else ()
        point = replace(point, invalid=invalid)
        point.write(home / "studies" / "batching" / point.name)
    like = results.measurements[0]
    failure = Failure(
        name="failed-point",
        variant=like.variant,
        engine=EngineArgs(),
        workload=like.workload,
        cause="out of memory",
    )
    failure.write(home / "studies" / "batching" / "failed-point" / "failed.json")
    results.measurements[-1].renamed("one-load").write(home / "loads" / "one-load")
    return home


@pytest.fixture(scope="module")
def logged(workdir: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        log_everything(workdir, lambda doing, share: None)
    return workdir


@pytest.fixture(autouse=True)
def _no_store_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from workbench.cli.runs import app; app()", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        timeout=120,
    )


def test_log_adds_what_lies_on_disk_once_and_names_what_it_cannot_read(
    logged: Path, results: Results
) -> None:
    again = log_everything(logged, lambda doing, share: None)
    # The pipeline and its 4 variants and 3 points; the study and its 12 points and failure; a load.
    assert (again.added, again.known) == (0, 8 + 14 + 1)
    (line,) = again.unreadable
    assert "cut-off" in line
    found = list_runs(logged)
    assert len(found) == 23
    assert set(found["experiment"]) == {"workbench", "workbench-batching", "workbench-loads"}


def test_changed_settings_do_not_add_the_old_results_again(logged: Path) -> None:
    """They are there, under the settings that they were made with."""
    before = (logged / "settings.json").read_text()
    Settings(trials=99).write(logged / "settings.json")
    again = log_everything(logged, lambda doing, share: None)
    (logged / "settings.json").write_text(before)
    assert again.added == 1  # the new parent alone


def test_what_is_damaged_costs_only_itself(results: Results, tmp_path: Path) -> None:
    Settings().write(tmp_path / "settings.json")
    sweep, study = tmp_path / "sweep", tmp_path / "study"
    (tmp_path / "report").mkdir()  # a report that was cut off
    for folder in (sweep, study):
        for point in results.measurements[:2]:
            point.write(folder / point.name)
        (folder / results.measurements[0].name / "requests.parquet").write_bytes(b"PAR1")
    (sweep / "done.json").write_text("{}")
    (sweep / "results.txt").write_text("\n".join(m.name for m in results.measurements[:2]))
    Study(name="damaged", question="?", concurrency=(1,)).write(study / "study.json")
    (study / "bad").mkdir()
    (study / "bad" / "failed.json").write_text("{}")
    logged = log_everything(tmp_path, lambda doing, share: None)
    # A parent and the sound point of each.
    assert logged.added == 4
    assert len(logged.unreadable) == 3
    assert [results.measurements[0].name in line for line in logged.unreadable].count(True) == 2


def test_a_directory_without_results_is_named_and_stays_empty(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "not there"):
        with pytest.raises(InputError, match=folder.name):
            log_everything(folder, lambda doing, share: None)
    assert list(tmp_path.iterdir()) == []


def test_results_that_lie_elsewhere_go_to_the_store_of_the_data_directory(
    results: Results, tmp_path: Path
) -> None:
    elsewhere, store = tmp_path / "results", tmp_path / "runs"
    study = elsewhere / "batching"
    results.measurements[0].write(study / results.measurements[0].name)
    Study(name="batching", question="?", concurrency=(1,)).write(study / "study.json")
    results.measurements[1].write(elsewhere / "fidelity" / "calibration" / "loop")
    before = sorted(elsewhere.rglob("*"))
    for added, known in ((3, 0), (0, 3)):
        done = log_everything(elsewhere, lambda doing, share: None, store=store)
        assert (done.added, done.known, done.unreadable) == (added, known, ())
    assert sorted(elsewhere.rglob("*")) == before
    found = list_runs(store).set_index("experiment")["name"]
    assert found["workbench-loads"] == "fidelity/calibration/loop"


def test_progress_names_the_runs(logged: Path) -> None:
    said: list[tuple[str, float]] = []
    log_everything(logged, lambda doing, share: said.append((doing, share)))
    assert {"int8", "failed-point", "one-load"} <= {doing for doing, _ in said}
    shares = [share for _, share in said]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] < 1


def test_studies_are_found_where_they_may_lie(tmp_path: Path) -> None:
    expected = [tmp_path, tmp_path / "a", tmp_path / "studies" / "b"]
    for folder in [*expected, tmp_path / "too" / "deep" / "c"]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "study.json").write_text("{}")
    assert studies_in(tmp_path) == expected


def test_a_filter_is_mlflows_own(logged: Path) -> None:
    every = list_runs(logged, study="batching", stage="measure")
    assert len(every) == 13
    speed = every["output_tokens_per_s"].median()
    fast = list_runs(
        logged,
        study="batching",
        condition=f"metrics.output_tokens_per_s > {speed} and params.variant = 'parent'",
    )
    assert 0 < len(fast) < 13
    assert set(fast["run_id"]) == set(every[every["output_tokens_per_s"] > speed]["run_id"])


@pytest.mark.parametrize(
    "condition", ["bogus", "metrics.a <", "metrics.a < 1 or metrics.b < 2", "nothing.a = 'b'"]
)
def test_a_bad_filter_is_named(logged: Path, condition: str) -> None:
    with pytest.raises(InputError) as caught:
        list_runs(logged, condition=condition)
    assert f"--filter(={condition!r})" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_study_is_named(logged: Path) -> None:
    with pytest.raises(InputError, match=r"--study\(='batchin'\)"):
        list_runs(logged, study="batchin")


def test_the_newest_come_first_and_no_more_than_asked(logged: Path) -> None:
    every = list_runs(logged)
    assert every["when"].is_monotonic_decreasing
    assert list(list_runs(logged, limit=3)["run_id"]) == list(every["run_id"][:3])


def test_rows_say_load_and_verdict(logged: Path) -> None:
    rows = list_runs(logged, study="batching", stage="measure").set_index("name")
    assert rows.loc["failed-point", "valid"] == "failed: out of memory"
    assert rows.loc["failed-point", "load"] == "batch 1"
    first = rows[rows["valid"] == f"no: {INVALID}"]
    assert len(first) == 1
    assert (rows["valid"] == "yes").sum() == 11
    assert (
        list_runs(logged, stage="measure", condition="params.mode = 'server'")
        .iloc[0]["load"]
        .endswith(" rps")
    )


def test_rows_are_sorted_as_numbers_and_what_has_none_comes_last() -> None:
    found = pd.DataFrame(
        {"name": ["a", "b", "c", "d"], "batch": ["8", "16", None, "2"], "variant": list("wxyz")}
    )
    up = choose(found, sort="batch", columns=["name"])
    assert list(up["name"]) == ["d", "a", "b", "c"]
    down = choose(found, sort="-batch", columns=["name", "batch"], limit=2)
    assert list(down["name"]) == ["b", "a"]
    assert list(down["batch"]) == [16, 8]
    assert list(choose(found, sort="-variant")["name"]) == ["d", "c", "b", "a"]
    assert list(found["name"]) == ["a", "b", "c", "d"]


def test_an_unknown_column_is_named_with_its_neighbours(logged: Path) -> None:
    found = list_runs(logged)
    for option, chosen in (
        ("--sort", {"sort": "-ttft_p9_s"}),
        ("--columns", {"columns": ["ttft_p9_s"]}),
    ):
        with pytest.raises(InputError) as caught:
            choose(found, **chosen)
        assert f"{option}(='ttft_p9_s')" in str(caught.value)
        assert "ttft_p99_s" in str(caught.value)


def test_default_columns_fit_the_kind_and_say_something(logged: Path) -> None:
    measured = choose(list_runs(logged, stage="measure"), stage="measure")
    assert list(measured.columns) == [
        *("name", "experiment", "variant", "load", "valid", "output_tokens_per_s"),
        *("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "when"),
    ]
    variants = choose(list_runs(logged, stage="compress"), stage="compress")
    assert "size_mib" in variants
    assert "output_tokens_per_s" not in variants
    assert "experiment" not in variants
    assert "load" not in choose(list_runs(logged, condition="tags.stage = 'compress'"))


def test_every_kind_can_be_asked_for() -> None:
    from workbench.cli.runs import _KINDS
    from workbench.runs import _COLUMNS

    assert set(_KINDS) == set(_COLUMNS)


@pytest.mark.slow
def test_the_command_prints_a_table_and_json(logged: Path) -> None:
    options = ["--workdir", str(logged), "--study", "batching", "--sort", "-output_tokens_per_s"]
    table = command("runs", *options, "--limit", "2")
    assert table.returncode == 0, table.stderr
    assert len(table.stdout.splitlines()) == 3
    done = command("runs", *options, "--limit", "0", "--json")
    rows = json.loads(done.stdout)
    speeds = [row["output_tokens_per_s"] for row in rows if row["output_tokens_per_s"] is not None]
    assert len(rows) == 14
    assert speeds == sorted(speeds, reverse=True)
    assert rows[0]["name"] in table.stdout.splitlines()[1]
    assert (table.stderr, done.stderr) == ("", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["runs", "--filter", "bogus"], "--filter(='bogus')"),
        (["runs", "--stage", "cook"], "--stage(='cook')"),
        (["runs", "--columns", "nme"], "name"),
    ],
)
def test_what_cannot_be_asked_is_one_line(logged: Path, arguments: list[str], says: str) -> None:
    done = command(*arguments, "--workdir", str(logged))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert says in line


def test_where_nothing_is_the_line_says_what_to_do(tmp_path: Path) -> None:
    done = command("runs", "--workdir", str(tmp_path), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == []
    (line,) = done.stderr.splitlines()
    assert "workbench log" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_log_says_how_many_and_fails_in_one_line(
    logged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = command("log", "--workdir", str(logged), "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["added"] == 0
    assert said["there"] >= 23
    assert "cut-off" in done.stderr
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    for arguments in (["log"], ["runs"]):
        refused = command(*arguments, "--workdir", str(logged))
        assert refused.returncode == 2
        line = refused.stderr.splitlines()[-1]
        assert "http://127.0.0.1:1 failed: Connection refused" in line


def test_completion_knows_the_studies(workdir: Path, tmp_path: Path) -> None:
    import typer

    from workbench.cli.runs import _studies, app

    context = typer.Context(typer.main.get_command(app))
    context.params = {"workdir": str(workdir)}
    assert _studies(context) == ["batching"]
    context.params = {"workdir": str(tmp_path)}
    assert _studies(context) == []
