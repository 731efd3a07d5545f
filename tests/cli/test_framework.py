"""The frame around every command: exit codes, one-message errors, streams, and what is not imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Annotated

import pytest
import typer

from bntool.cli import app, common, screen
from bntool.errors import LoadError, RunError, UsageError, VerificationError

PROBLEMS = {
    "usage": (UsageError("a", where="b", next="c."), 2),
    "load": (LoadError("a", where="b", next="c."), 3),
    "run": (RunError("a", where="b", next="c."), 4),
    "verify": (VerificationError("a", where="b", next="c."), 6),
    "bug": (ZeroDivisionError("a"), 70),
    "interrupt": (KeyboardInterrupt(), 130),
}


@common.command
def toy(
    how: Annotated[str, typer.Argument()] = "fine",
    as_json: common.AsJson = False,
    code: Annotated[int, typer.Option()] = 0,
) -> int | None:
    """A toy."""
    if how in PROBLEMS:
        raise PROBLEMS[how][0]
    screen.note("a note")
    screen.detail("a detail")
    if as_json:
        screen.emit_json({"schema_version": 1, "values": (1, float("nan"))})
    else:
        screen.table(["name", "value"], [("a", 1), ("[b]", 2)], right=["value"])
    return code or None


@common.command
def other() -> None:
    """Another toy, so that the program has commands."""


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "COMMANDS", (toy, other))
    monkeypatch.setattr(screen, "settings", screen.Settings())


@pytest.mark.parametrize("how", PROBLEMS)
def test_a_problem_is_one_message_on_stderr_and_an_exit_code(
    how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["toy", how]) == PROBLEMS[how][1]
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert how in ("bug", "interrupt") or err == "error: b: a. c.\n"


def test_debug_shows_the_traceback_and_keeps_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["toy", "load", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_a_command_chooses_its_exit_code() -> None:
    assert app.run(["toy", "--code", "5"]) == 5
    assert app.run(["toy"]) == 0


@pytest.mark.parametrize("line", [["nothing"], ["toy", "--nothing"], ["toy", "--code", "x"]])
def test_usage_errors_end_in_2(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(line) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_results_go_to_stdout_and_messages_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    app.run(["toy", "-v"])
    out, err = capsys.readouterr()
    assert "[b]" in out
    assert err == "a note\na detail\n"
    app.run(["toy", "-q"])
    assert capsys.readouterr().err == ""


def test_json_is_one_strict_document(capsys: pytest.CaptureFixture[str]) -> None:
    app.run(["toy", "--json"])
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "values": [1, None]}


def test_options_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNTOOL_TOY_CODE", "4")
    assert app.run(["toy"]) == 4
    assert app.run(["toy", "--code", "1"]) == 1


HEAVY = {"torch", "onnx", "onnxruntime", "onnx_ir", "numpy"}
WATCH = "import sys; from bntool.cli.app import run; code = run(sys.argv[1:]); "
WATCH += f"print(code, sorted({HEAVY!r} & set(sys.modules)))"


@pytest.mark.parametrize(
    ("line", "code"), [(["--help"], 0), (["--version"], 0), (["nonsense"], 2), ([], 2), (["--nonsense"], 2)]
)
def test_help_and_usage_errors_import_nothing_heavy(line: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, "-c", WATCH, *line], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{code} []"


def test_completion_imports_nothing_heavy() -> None:
    asked = {"_BNTOOL_COMPLETE": "complete_bash", "COMP_WORDS": "bntool fo", "COMP_CWORD": "1"}
    code = "import atexit, sys; from bntool.cli.app import run; "
    code += (
        f"atexit.register(lambda: print('heavy:', sorted({HEAVY!r} & set(sys.modules)))); sys.exit(run([]))"
    )
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, **asked}, check=False)
    assert done.stdout.splitlines() == ["fold", "heavy: []"]


def test_help_takes_less_than_three_tenths_of_a_second() -> None:
    """CPU time, the best of three: the machine may be busy with something else."""

    def cpu_s() -> float:
        before = os.times()
        subprocess.run([sys.executable, "-m", "bntool", "--help"], capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(cpu_s() for _ in range(3)) < 0.3


def test_a_reader_that_has_seen_enough_is_no_failed_gate() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "bntool", "--help"]
    outcome = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (outcome.returncode, outcome.stderr) == (141, "")
