"""Run stages over one data directory, each once, with a display; what they do is in `stages`.

    runs/settings.json            what was chosen
    runs/<stage>/                 what a stage made; done.json when it is whole
    runs/report.html              the page
    runs/mlflow.db, mlartifacts/  the trail
    runs/logs/, cache/            what the libraries printed and compiled

A stage is done again only when the settings it depends on, or those of an earlier stage, changed: its
done.json holds a digest of both. A stage that was cut off goes on where its own parts allow.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import InputError
from serving.values import Value
from workbench.apart import Child, Link
from workbench.progress import OnProgress, Stages, quiet

_NEEDED_DISK_GIB = 1.0
_CACHES = ("NUMBA_CACHE_DIR", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT", "MPLCONFIGDIR")


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: of its folder.
        title: what the user reads.
        command: the command that runs it.
        inputs: names of the settings that its result depends on.
        after: stages whose results it reads.
        work: does it: (pipeline, folder, on_progress).
        apart: in a process of its own, which gives its memory back and keeps libraries that patch
            each other (llmcompressor, vLLM) from meeting.
        shows: stages whose results it shows as well, where they are there; it is done again then.
    """

    name: str
    title: str
    command: str
    inputs: tuple[str, ...]
    after: tuple[str, ...]
    work: Callable[[Pipeline, Path, OnProgress], None]
    apart: bool = False
    shows: tuple[str, ...] = ()


class Pipeline:
    """Stages over one data directory.

    Args:    workdir: the data directory; made where it is missing.
             settings: what the user chose.
             stages: all of them, in order.
             extra: what else the results depend on, for example the model's path.
    Raises:  InputError: the directory cannot be written, or the disk is full.
    """

    def __init__(
        self,
        workdir: Path,
        settings: Value,
        stages: Sequence[Stage],
        extra: Mapping[str, str] | None = None,
    ) -> None:
        self.workdir = workdir.resolve()
        self.settings = settings
        self.stages = {stage.name: stage for stage in stages}
        self.extra = dict(extra or {})
        _check_writable(self.workdir)

    def run(self, names: Sequence[str], *, to_stderr: bool = False) -> None:
        """Run stages one after the other with a progress display; whole ones are not done again.

        Raises:  InputError: a result that a stage reads is not there.
        """
        for name in names:
            self.require(name, among=names)
        chosen = [self.stages[name] for name in names]
        self.settings.write(self.workdir / "settings.json")
        with (
            quiet(self.workdir / "logs" / "libraries.log", to_stderr=to_stderr) as terminal,
            Stages([s.title for s in chosen], terminal) as display,
        ):
            for stage in chosen:
                with display.stage(stage.title) as on_progress:
                    self._once(stage, on_progress)

    def folder(self, name: str) -> Path:
        """Where a stage's result lies."""
        return self.workdir / name

    def is_done(self, name: str) -> bool:
        """Whether the result is whole and of these settings."""
        return _says(self.folder(name) / "done.json", self._key(self.stages[name]))

    def _once(self, stage: Stage, on_progress: OnProgress) -> None:
        if self.is_done(stage.name):
            on_progress("already there", 1.0)
            return
        folder, key = self.folder(stage.name), self._key(stage)
        begun = folder / "begun.json"
        if not _says(begun, key):
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        begun.write_text(json.dumps(key))
        if stage.apart:
            _work_apart(self, stage.name, on_progress)
        else:
            stage.work(self, folder, on_progress)
        # A stage that took it away is to be done again.
        if begun.exists():
            begun.replace(folder / "done.json")

    def _key(self, stage: Stage) -> str:
        """Digest of everything that the stage's result depends on."""
        chosen = self.settings.model_dump(mode="json")
        wanted: dict[str, Any] = {name: chosen[name] for name in stage.inputs} | self.extra
        shown = tuple(name for name in stage.shows if self.is_done(name))
        wanted["after"] = [self._key(self.stages[name]) for name in (*stage.after, *shown)]
        return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()

    def require(self, name: str, among: Sequence[str] = ()) -> None:
        """Check that what a stage reads is there, or made by one of `among`."""
        stage = self.stages[name]
        for earlier in stage.after:
            if earlier not in among and not self.is_done(earlier):
                command = f"workbench {self.stages[earlier].command} --workdir {self.workdir}"
                raise InputError(
                    f"`{stage.command}` needs the result of `{self.stages[earlier].command}`, which"
                    f" {self.workdir} does not have for these settings",
                    remedy=f"Run `{command}` first, or `workbench demo`.",
                )


def _work_apart(pipeline: Pipeline, name: str, on_progress: OnProgress) -> None:
    """Do a stage's work in a child process that ends with this one."""
    with Child(_work, pipeline, name) as child:
        for doing, share in child:
            on_progress(doing, share)


def _work(link: Link, pipeline: Pipeline, name: str) -> None:
    stage = pipeline.stages[name]
    stage.work(pipeline, pipeline.folder(name), lambda *said: link.send(said))


def _says(path: Path, key: str) -> bool:
    return path.exists() and json.loads(path.read_text()) == key


def keep_caches_in(folder: Path) -> None:
    """Compiled code and downloads of the libraries belong to the data directory as well."""
    for name in _CACHES:
        os.environ.setdefault(name, str(folder.resolve() / name.lower().removesuffix("_dir")))


def _check_writable(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".probe"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"--workdir(={str(workdir)!r}) cannot be written ({error.strerror})",
            remedy="Choose a folder of yours.",
        ) from error
    free_gib = shutil.disk_usage(workdir).free / 2**30
    if free_gib < _NEEDED_DISK_GIB:
        raise InputError(
            f"--workdir(={str(workdir)!r}) has {free_gib:.2f} GiB free",
            remedy=f"Free at least {_NEEDED_DISK_GIB:g} GiB or choose another disk.",
        )
