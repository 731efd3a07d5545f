"""The help texts, as last agreed on. After a change: UPDATE_HELP=1 pytest tests/cli/test_help.py."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
import typer

from bntool.cli import app
from bntool.cli.examples import EXAMPLES

FOLDER = Path(__file__).with_name("help")


@pytest.mark.parametrize("name", ["", *(command.__name__ for command in app.COMMANDS)])
def test_help_is_as_it_was(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    assert app.run([*([name] if name else []), "--help"]) == 0
    shown, kept = capsys.readouterr().out, FOLDER / f"{name or 'bntool'}.txt"
    if os.environ.get("UPDATE_HELP"):
        FOLDER.mkdir(exist_ok=True)
        kept.write_text(shown)
    assert shown == kept.read_text()


def test_every_option_is_explained() -> None:
    for text in FOLDER.glob("*.txt"):
        _, _, options = text.read_text().partition("\nOptions:\n")
        lines = options.partition("\n\n")[0].splitlines()
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            if line.startswith("  -"):
                explained = len(line.strip().split("  ")) > 1 or following.startswith(" " * 10)
                assert explained, f"{text.name}: {line}"


def test_every_command_has_examples() -> None:
    assert set(EXAMPLES) == {command.__name__ for command in app.COMMANDS}


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_an_example_in_the_help_is_a_command_line_that_parses(line: str) -> None:
    program, name, *arguments = shlex.split(line)
    commands = typer.main.get_command(app.build()).commands  # type: ignore[attr-defined]  # a group
    assert program == "bntool"
    commands[name].make_context(name, arguments)


def test_an_example_with_an_unknown_option_does_not_parse() -> None:
    commands = typer.main.get_command(app.build()).commands  # type: ignore[attr-defined]  # a group
    with pytest.raises(typer.TyperException):
        commands["fold"].make_context("fold", ["nets.py:net", "--no-such-option"])
