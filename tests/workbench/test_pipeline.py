"""The mechanism of the pipeline: once, in order, resumable, and apart where it must be."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from serving.errors import EngineError, InputError
from serving.values import Value
from workbench.pipeline import Pipeline, Stage
from workbench.progress import OnProgress, Stages, quiet


class Chosen(Value):
    one: int = 1
    two: int = 2


def work(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
    """Count the runs in a file, and say from which process."""
    on_progress("working", 0.5)
    before = (folder / "runs").read_text() if (folder / "runs").exists() else ""
    (folder / "runs").write_text(before + f"{os.getpid()}\n")


def fail(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
    (folder / "part").write_text("kept")
    raise InputError("value(=3) is odd", remedy="Take 4.")


def die(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
    os._exit(9)


FIRST = Stage("first", "First", "one", ("one",), (), work)
SECOND = Stage("second", "Second", "two", ("two",), ("first",), work)


def runs(pipeline: Pipeline, name: str) -> int:
    return len((pipeline.folder(name) / "runs").read_text().splitlines())


def test_a_stage_is_done_once(tmp_path: Path) -> None:
    for _ in range(2):
        pipeline = Pipeline(tmp_path, Chosen(), [FIRST, SECOND])
        pipeline.run(["first", "second"])
    assert (runs(pipeline, "first"), runs(pipeline, "second")) == (1, 1)


def test_what_is_only_shown_is_not_needed_but_makes_it_new(tmp_path: Path) -> None:
    page = Stage("page", "Page", "page", (), ("first",), work, shows=("second",))
    pipeline = Pipeline(tmp_path, Chosen(), [FIRST, SECOND, page])
    pipeline.run(["first", "page"])
    assert pipeline.is_done("page")
    pipeline.run(["second"])
    assert not pipeline.is_done("page")
    pipeline.run(["page"])
    assert pipeline.is_done("page")
    # What the other shows is of other settings now.
    assert not Pipeline(tmp_path, Chosen(two=3), [FIRST, SECOND, page]).is_done("page")


def test_what_changed_is_done_again_and_all_behind_it(tmp_path: Path) -> None:
    def marked(chosen: Chosen) -> tuple[str, str]:
        pipeline = Pipeline(tmp_path, chosen, [FIRST, SECOND])
        pipeline.run(["first", "second"])
        stamps = [
            (pipeline.folder(name) / "done.json").stat().st_mtime_ns for name in ("first", "second")
        ]
        return str(stamps[0]), str(stamps[1])

    first, second = marked(Chosen())
    again = marked(Chosen(two=3))
    assert again[0] == first
    assert again[1] != second
    whole = marked(Chosen(one=5, two=3))
    assert whole[0] != first
    assert whole[1] != again[1]


def test_a_missing_result_is_named_with_the_command(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path, Chosen(), [FIRST, SECOND])
    with pytest.raises(InputError, match="Run `workbench one --workdir"):
        pipeline.run(["second"])


def test_parts_of_a_stage_that_failed_are_kept(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path, Chosen(), [Stage("first", "First", "one", (), (), fail)])
    with pytest.raises(InputError, match="value"):
        pipeline.run(["first"])
    assert (pipeline.folder("first") / "part").read_text() == "kept"
    assert not pipeline.is_done("first")


def test_apart_is_another_process_and_errors_cross_whole(tmp_path: Path) -> None:
    apart = Stage("first", "First", "one", (), (), work, apart=True)
    pipeline = Pipeline(tmp_path / "a", Chosen(), [apart])
    pipeline.run(["first"])
    assert (pipeline.folder("first") / "runs").read_text().strip() != str(os.getpid())

    bad = Pipeline(tmp_path / "b", Chosen(), [Stage("x", "X", "x", (), (), fail, apart=True)])
    with pytest.raises(InputError, match="odd") as caught:
        bad.run(["x"])
    assert caught.value.remedy == "Take 4."

    dead = Pipeline(tmp_path / "c", Chosen(), [Stage("x", "X", "x", (), (), die, apart=True)])
    with pytest.raises(EngineError, match="ended with exit status 9"):
        dead.run(["x"])


def test_the_disk_must_have_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 10

    monkeypatch.setattr("shutil.disk_usage", lambda path: Full)
    with pytest.raises(InputError, match="GiB free"):
        Pipeline(tmp_path, Chosen(), [FIRST])


def test_libraries_print_to_the_log_and_the_display_to_the_user(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with quiet(tmp_path / "log") as terminal:
        os.write(1, b"from C++\n")
        os.write(2, b"from Python\n")
        terminal.write("for the user\n")
    print("after")
    assert capfd.readouterr().out == "for the user\nafter\n"
    assert (tmp_path / "log").read_text() == "from C++\nfrom Python\n"


def test_plain_progress_names_stage_time_and_doing() -> None:
    said = io.StringIO()
    with Stages(["A", "B"], said) as display:
        with display.stage("A") as on_progress:
            on_progress("half way", 0.5)
        with display.stage("B"):
            pass
    lines = said.getvalue().splitlines()
    assert lines[1].startswith("[1/2] A: half way (50%")
    assert lines[2].startswith("[1/2] A: done in ")
    assert lines[-1].startswith("[2/2] B: done in ")
