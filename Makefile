# Two commands do everything: `make demo` and `make test`. Both install what is missing first.
PYTHON ?= python3
BIN := .venv/bin
WORKDIR ?= runs

.DEFAULT_GOAL := help
.PHONY: help install demo test lint bench lab ui clean

help:  ## say what there is
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.installed: requirements/cpu.txt requirements/gpu.txt requirements/pins.py pyproject.toml
	@$(PYTHON) requirements/pins.py install

install: .venv/.installed  ## make .venv and install the pinned packages (the second time: nothing)

demo: .venv/.installed  ## run the whole pipeline once on real vLLM (about 10 minutes on 2 cores)
	@$(BIN)/workbench demo --workdir $(WORKDIR)

lint: .venv/.installed  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## everything: lint, types, unit, theory, property and contract tests, real vLLM, notebooks
	$(BIN)/pytest --nbmake notebooks tests

bench: .venv/.installed  ## performance: the twin, a day of a fleet, a search, the load client, the gateway, each beside its peers
	$(BIN)/python -m benchmarks.twin
	$(BIN)/python -m benchmarks.fleet_day
	$(BIN)/python -m benchmarks.tune_day 4
	$(BIN)/python -m benchmarks.client
	$(BIN)/python -m benchmarks.vllm_bench
	$(BIN)/python -m benchmarks.gateway

lab: .venv/.installed  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

ui: .venv/.installed  ## compare the tracked runs in MLflow
	MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow ui --backend-store-uri sqlite:///$(WORKDIR)/mlflow.db

clean:  ## remove the environment and caches, keep the runs
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache *.egg-info
