"""Flag > environment > settings file > default; and what a settings file may not say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
import typer

from bntool.cli import app, common, screen

SEEN: dict[str, object] = {}


@common.command
def toy(
    model: common.ModelRef = "",
    size: Annotated[int, typer.Option("--batch-size")] = 1,
    keep: Annotated[list[str] | None, typer.Option("--keep")] = None,
    fold: Annotated[bool, typer.Option("--fold/--no-fold")] = True,
    trust: common.Trust = False,
) -> None:
    """A toy."""
    SEEN.update(size=size, keep=keep, fold=fold, trust=trust, quiet=screen.settings.quiet)


@common.command
def other(size: Annotated[int, typer.Option("--batch-size")] = 1) -> None:
    """Another."""
    SEEN.update(size=size)


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(app, "COMMANDS", (toy, other))
    monkeypatch.setattr(screen, "settings", screen.Settings())
    monkeypatch.chdir(tmp_path)
    SEEN.clear()


def write(text: str, name: str = "pyproject.toml") -> None:
    Path(name).write_text(text)


def test_each_source_gives_way_to_the_one_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def size(*flags: str) -> object:
        assert app.run(["toy", *flags]) == 0
        return SEEN["size"]

    assert size() == 1
    write("[tool.bntool]\nbatch-size = 2\n")
    assert size() == 2
    write("[tool.bntool]\nbatch-size = 2\n[tool.bntool.toy]\nbatch_size = 3\n")
    assert size() == 3
    monkeypatch.setenv("BNTOOL_BATCH_SIZE", "4")
    assert size() == 4
    monkeypatch.setenv("BNTOOL_TOY_BATCH_SIZE", "5")
    assert size() == 5
    assert size("--batch-size", "6") == 6


def test_settings_of_one_command_are_not_those_of_another() -> None:
    write("[tool.bntool.toy]\nbatch-size = 3\n")
    assert app.run(["other"]) == 0
    assert SEEN["size"] == 1


def test_lists_flags_and_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    write('keep = ["a.*", "b"]\nfold = false\nquiet = true\n', "bntool.toml")
    assert app.run(["toy"]) == 0
    assert SEEN == {"size": 1, "keep": ["a.*", "b"], "fold": False, "trust": False, "quiet": True}
    monkeypatch.setenv("BNTOOL_KEEP", "c d")
    monkeypatch.setenv("BNTOOL_FOLD", "1")
    assert app.run(["toy"]) == 0
    assert (SEEN["keep"], SEEN["fold"]) == (["c", "d"], True)


def test_settings_are_found_in_a_folder_above(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write("[tool.bntool]\nbatch-size = 7\n")
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    monkeypatch.chdir(inner)
    assert app.run(["toy"]) == 0
    assert SEEN["size"] == 7


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("[tool.bntool]\nbatch-sise = 2\n", 2, "Did you mean batch-size"),
        ("[tool.bntool.other]\nkeep = ['a']\n", 2, "no setting 'keep'"),
        ("[tool.bntool]\ntrust = true\n", 2, "cannot be set in a file"),
        ("[tool.bntool.toy]\nforce = true\n", 2, "cannot be set in a file"),
        ("[tool.bntool\n", 3, "cannot read it"),
        ("[tool.bntool]\nbatch-size = 'many'\n", 2, "'--batch-size'"),
    ],
)
def test_settings_that_make_no_sense(
    text: str, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(text)
    assert app.run(["toy"]) == code
    assert words in capsys.readouterr().err


def test_a_broken_settings_file_does_not_stop_help(capsys: pytest.CaptureFixture[str]) -> None:
    write("[tool.bntool\n")
    assert app.run(["--help"]) == 0


def test_tables_that_are_no_command_are_left_to_their_owner() -> None:
    write("[tool.bntool.toy.cases.one]\nmodels = ['a']\n[tool.bntool.elsewhere]\nx = 1\n")
    assert app.run(["toy"]) == 0
