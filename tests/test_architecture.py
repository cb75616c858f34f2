"""Imports point one way, each library has one home, and starting is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ["serving", "simulations", "workbench", "experiments"]


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module that is imported anywhere in a file, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""


def test_the_walk_sees_every_layer() -> None:
    assert all(len(modules(layer)) > 0 for layer in LAYERS)
    assert "simulations.traffic" in set(imports(ROOT / "simulations" / "result.py"))


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer: str) -> None:
    right_of_it = set(LAYERS[LAYERS.index(layer) + 1 :])
    for path in modules(layer):
        wrong = {name for name in imports(path) if name.split(".")[0] in right_of_it}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize(
    ("library", "home"),
    [
        ("mlflow", "workbench/track"),
        ("optuna", "workbench/tune"),
        ("simpy", "simulations"),
        ("vllm", "workbench/measure"),
        ("llmcompressor", "workbench/compress"),
    ],
)
def test_each_library_has_one_home(library: str, home: str) -> None:
    users = [
        str(path.relative_to(ROOT))
        for layer in LAYERS
        for path in modules(layer)
        if any(name.split(".")[0] == library for name in imports(path))
    ]
    assert users, f"nothing imports {library}: is this test still about this project?"
    assert all(user.startswith(home) for user in users), users


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return {name.split(".")[0] for name in done.stdout.split()}


def test_the_twin_is_light() -> None:
    loaded = loaded_after("import simulations.simulate")
    assert not loaded & {"torch", "vllm", "mlflow", "optuna", "transformers"}
    assert "simpy" in loaded


def test_the_command_line_starts_without_heavy_libraries() -> None:
    loaded = loaded_after("import workbench.cli, workbench")
    assert not loaded & {"torch", "vllm", "mlflow", "optuna", "pandas", "numba", "plotly"}


def test_serving_needs_nothing_but_pydantic_and_yaml() -> None:
    loaded = loaded_after("import serving.plan, serving.manifests")
    assert not loaded & {"torch", "pandas", "numpy", "vllm", "simulations", "workbench"}


def test_a_function_is_not_hidden_by_the_module_of_its_name() -> None:
    code = (
        "import workbench.compress.distil, workbench.compress.prune, workbench.fit.model;"
        "import workbench as wb; from workbench.compress import distil, prune;"
        "assert callable(distil) and callable(prune) and callable(wb.fit) and callable(wb.compress)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names() -> None:
    import workbench

    assert workbench.__all__ == [
        "Arm",
        "Ask",
        "Candidate",
        "Cluster",
        "EngineArgs",
        "Fidelity",
        "FidelityStudy",
        "LatencyModel",
        "Measurement",
        "Measurements",
        "Payoff",
        "Plan",
        "SearchSpace",
        "SimResult",
        "Slo",
        "Study",
        "Variant",
        "Variants",
        "Verification",
        "WorkbenchError",
        "Workload",
        "capacity",
        "compare",
        "compress",
        "export",
        "fidelity",
        "fit",
        "frame",
        "measure",
        "predict",
        "recipes_of",
        "report",
        "run_study",
        "shipped_checkpoint",
        "simulate",
        "sweep_batches",
        "sweep_rates",
        "tune",
        "verify",
    ]
    for name in workbench.__all__:
        assert getattr(workbench, name) is not None
    with pytest.raises(AttributeError, match="workbench has no 'train'"):
        _ = workbench.train
