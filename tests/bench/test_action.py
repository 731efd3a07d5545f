"""The GitHub Action: its steps are run here as a runner would, with bash, inputs as variables, its files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
WORKFLOW = yaml.safe_load((ROOT / "examples/github-workflow.yml").read_text())


def step(name: str) -> dict[str, Any]:
    return next(s for s in ACTION["runs"]["steps"] if s["name"] == name)


def variables(name: str, given: dict[str, str]) -> dict[str, str]:
    """The step's env with `${{ inputs.x }}` filled in, as the runner does it."""
    values = {key: entry["default"] for key, entry in ACTION["inputs"].items()} | given
    filled = {}
    for key, text in step(name)["env"].items():
        wanted = text.removeprefix("${{ inputs.").removesuffix(" }}")
        filled[key] = values[wanted]
    return filled


def run(name: str, folder: Path, **given: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    files = {n: folder / n.lower() for n in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for path in files.values():
        path.write_text("")
    # the runner's python is the one of this environment
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | variables(name, {k.replace("_", "-"): v for k, v in given.items()})
    environment |= {n: str(p) for n, p in files.items()} | {"GITHUB_ACTIONS": "true", "PATH": path}
    script = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step(name)["run"]]
    done = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True, timeout=250)
    return done, {n: p.read_text() for n, p in files.items()}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text((ROOT / "tests/bench/nets.py").read_text())
    return tmp_path


def test_a_failing_gate_fails_the_step_and_leaves_reports(project: Path) -> None:
    """A gate that needs no clock: on a machine that is busy enough, a slower model is inconclusive."""
    done, written = run(
        "Bench",
        project,
        models="nets.py:net\nnets.py:net(times=20, norm=False)\n",
        arguments="--budget 0.1s --replicates 2\n--no-confirm --max-ops 10",
    )
    assert done.returncode == 1, done.stderr
    assert "exit-code=1" in written["GITHUB_OUTPUT"]
    assert "the budget 10" in written["GITHUB_STEP_SUMMARY"]
    assert "::error title=bntool bench::nets.py:net(times=20, norm=False): " in done.stderr
    reports = project / "bntool-bench"
    assert json.loads((reports / "bench.json").read_text())["comparisons"][0]["gate"] == "fail"
    assert {p.name for p in reports.iterdir()} == {
        "bench.json",
        "bench.md",
        "bench.csv",
        "bench.html",
        "junit.xml",
    }


def test_a_usage_error_fails_the_step_with_its_own_code(project: Path) -> None:
    done, written = run("Bench", project, models="nets.py:net", arguments="--tolerance never")
    assert done.returncode == 2
    assert "exit-code=2" in written["GITHUB_OUTPUT"]
    assert "--tolerance" in done.stderr


def test_the_install_step_installs(project: Path) -> None:
    """Several arguments are one input; what is there already needs no network."""
    assert run("Install", project, package="--dry-run --no-index numpy torch")[0].returncode == 0
    assert run("Install", project, package="--dry-run --no-index no-such-package-at-all")[0].returncode != 0


def test_no_step_pastes_an_input_into_a_script() -> None:
    assert all("${{" not in s["run"] for s in ACTION["runs"]["steps"])


def test_the_workflow_uses_inputs_that_exist() -> None:
    used = [s for s in WORKFLOW["jobs"]["latency"]["steps"] if "bntool@" in s.get("uses", "")]
    assert len(used) == 1
    assert set(used[0]["with"]) <= set(ACTION["inputs"])
