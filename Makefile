# Two commands do everything: `make demo` and `make test`. Both install what is missing first.
PYTHON ?= python3
BIN := .venv/bin
WORKDIR ?= runs

# Tests of one file share its servers. What real vLLM is asked is measured, so that runs alone.
TWO := -n 2 --dist loadfile
# Starts no server, no browser and no compiler, and loads no pytest plugin that takes seconds to load.
QUICK := -p no:nbmake -p no:schemathesis -m "not vllm and not e2e and not slow" \
	tests/test_architecture.py tests/test_packaging.py tests/test_documents.py \
	tests/serving/test_hpa.py tests/serving/test_hpa_refusals.py tests/serving/test_signals.py \
	tests/serving/test_logs_report.py tests/serving/doctor \
	tests/simulations/autoscaler tests/simulations/traffic \
	tests/workbench/test_settings.py tests/workbench/test_pipeline.py tests/workbench/test_agreement.py \
	tests/workbench/tune/test_space.py tests/workbench/measure/test_validity.py

.DEFAULT_GOAL := help
.PHONY: help install demo check test lint coverage docs wheel bench lab ui clean

help:  ## say what there is
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.installed: requirements/cpu.txt requirements/gpu.txt requirements/pins.py pyproject.toml
	@$(PYTHON) requirements/pins.py install

install: .venv/.installed  ## make .venv and install the pinned packages (the second time: nothing)

demo: .venv/.installed  ## run the whole pipeline once on real vLLM (10 to 20 minutes on 2 cores)
	@$(BIN)/workbench demo --workdir $(WORKDIR)

lint: .venv/.installed  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint  ## the inner loop, under a minute: lint, types, and the unit tests that are quick
	$(BIN)/pytest -q $(TWO) $(QUICK)

test: lint  ## everything: lint, types, unit, theory, property and contract tests, real vLLM, notebooks
	$(BIN)/pytest $(TWO) -m "not vllm and not e2e" tests
	$(BIN)/pytest -m "vllm or e2e" tests
	$(BIN)/pytest --nbmake notebooks

coverage: .venv/.installed  ## which lines the tests without vLLM run (build/coverage/index.html)
	$(BIN)/pytest -q $(TWO) -m "not vllm and not e2e" --cov --cov-report=term:skip-covered --cov-report=html tests

docs: .venv/.installed  ## execute the notebooks, then build the site (build/site/index.html)
	PLOTLY_RENDERER=notebook $(BIN)/jupyter nbconvert --execute --to html --output-dir build/notebooks \
		--HTMLExporter.mathjax_url= --HTMLExporter.require_js_url= notebooks/*.ipynb
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

wheel: .venv/.installed  ## build what pip installs (dist/)
	$(BIN)/python -m build

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
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache *.egg-info
