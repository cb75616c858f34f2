"""`workbench study` on studies of a fleet: answered, resumed, and refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from serving.errors import InputError
from simulations.scenarios import FleetStudy, read_scenario
from simulations.studies import StudyAnswer
from tests.simulations.models import latency
from workbench.report.scenario_figures import scenario_figure
from workbench.studies import answer_study, from_card

ROOT = Path(__file__).resolve().parents[2]
DECLARED = sorted((ROOT / "experiments" / "fleet").glob("*.yaml"))
COMMITTED = ROOT / "experiments" / "results" / "studies"
TINY = """
kind: fleet
name: tiny
question: Does a second replica help?
claim: Two replicas answer sooner than one.
device: h100
plan:
  variant: {name: bf16, model: meta-llama/Llama-3.1-8B-Instruct}
  engine: {max_model_len: 4096, max_num_seqs: 16, max_num_batched_tokens: 8192}
  slo: {}
  replicas: 1
workload:
  arrivals: {kind: poisson, rate_rps: 8}
  prompt_tokens: {kind: fixed, tokens: 500}
  output_tokens: {kind: fixed, tokens: 200}
  duration_s: 120
arms:
  - name: one
  - name: two
    changes: {plan.replicas: 2}
quick: {workload.duration_s: 40}
seeds: [0, 1, 2]
metrics: [ttft_p99_s, e2e_p50_s, gpu_hours]
answer:
  - {metric: e2e_p50_s, arm: two, against: one, below: 0}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def workbench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workbench.cli", "study", *arguments],
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_the_command_writes_the_answer_and_a_page_and_says_what_is_assumed(
    tiny: Path, tmp_path: Path
) -> None:
    idle = ROOT / "experiments" / "fleet" / "night-idle.yaml"
    out = tmp_path / "out"
    command = [str(tiny), str(idle), "--out", str(out), "--workdir", str(tmp_path), "--json"]
    done = workbench(*command, "--seeds", "2")
    assert done.returncode == 0, done.stderr
    fleet, by_hand = (StudyAnswer.model_validate(one) for one in json.loads(done.stdout))
    assert (fleet.verdict, by_hand.verdict) == ("holds", "depends")
    assert fleet.seeds == (0, 1)
    assert "assumed from the device card of h100" in done.stderr
    for found in (fleet, by_hand):
        assert StudyAnswer.read(out / found.name / "study.json") == found
        page = (out / found.name / "index.html").read_text()
        assert found.claim in page
        assert "Plotly.newPlot" in page
    assert len(list((out / "tiny" / "runs").iterdir())) == 4


def test_what_was_done_is_not_done_again_and_what_has_changed_is(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = read_scenario(tiny)
    assert isinstance(study, FleetStudy)
    done: list[str] = []
    from workbench import studies

    def counted(*arguments: object, **options: object) -> object:
        done.append(f"{arguments[0].name} {arguments[1]}")  # type: ignore[attr-defined]
        return run_case(*arguments, **options)  # type: ignore[arg-type]

    run_case = studies.run_case
    monkeypatch.setattr(studies, "run_case", counted)
    folder = tmp_path / "tiny"
    first = answer_study(study, folder, seeds=(0,), quick=True)
    assert done == ["one 0", "two 0"]
    again = answer_study(study, folder, seeds=(0, 1), quick=True)
    assert done[2:] == ["one 1", "two 1"]
    assert again.runs[0] == first.runs[0]
    other = study.model_copy(update={"quick": {"workload.duration_s": 41}})
    answer_study(other, folder, seeds=(0,), quick=True)
    assert done[4:] == ["one 0", "two 0"]
    measured = answer_study(study, folder, seeds=(0,), quick=True, latency=latency())
    assert done[6:] == ["one 0", "two 0"]
    assert first.doubts
    assert not measured.doubts


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.yaml"], ["none.yaml"]),
        (["{wrong}"], ["wrong.yaml", "rate_rps"]),
        (["{tiny}", "--ray", "auto"], ["--ray", "simulated"]),
        (["{tiny}", "{tiny}"], ["same name"]),
        (["{tiny}", "--latency", "none.json"], ["none.json"]),
        (["{grid}", "--quick"], ["--quick", "measured"]),
        (["{grid}", "{grid}"], ["several grids"]),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tiny: Path, tmp_path: Path, arguments: list[str], says: list[str]
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(TINY.replace("rate_rps: 8", "rate_rps: -8"))
    names = {"tiny": tiny, "wrong": wrong, "grid": ROOT / "experiments" / "batching-cpu.yaml"}
    filled = [argument.format(**names) for argument in arguments]
    done = workbench(*filled, "--workdir", str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    for words in says:
        assert words in done.stderr


def test_a_model_of_which_nothing_is_known_is_refused(tiny: Path) -> None:
    study = read_scenario(tiny)
    assert isinstance(study, FleetStudy)
    plan = study.cases()[0].plan
    nobodys = plan.variant.model_copy(update={"model": "nobody/nothing"})
    with pytest.raises(InputError, match="'nobody/nothing'"):
        from_card(plan.model_copy(update={"variant": nobodys}), "h100")


@pytest.mark.parametrize("path", DECLARED, ids=lambda path: path.stem)
def test_committed_answers_are_of_the_declared_studies(path: Path) -> None:
    found = StudyAnswer.read(COMMITTED / path.stem / "study.json")
    declared = yaml.safe_load(path.read_text())
    assert (found.question, found.claim) == (declared["question"], declared["claim"])
    assert not found.quick
    if isinstance(study := read_scenario(path), FleetStudy):
        assert found.seeds == study.seeds
        assert found.arms == tuple(arm.name for arm in study.arms)
    assert len(scenario_figure(found).data) == len(found.cells)
    said = (ROOT / "docs" / "STUDIES.md").read_text()
    assert " ".join(found.answer.split()) in " ".join(said.split())
