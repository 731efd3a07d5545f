"""What the README shows, done: its files written, its commands and Python run, in order, in one folder."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from bntool.cli import app, screen

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)( norun)?\n(.*?)^```", README, re.S | re.M)


def name_in(block: str) -> str | None:
    """The file that a block is, when its first line says so."""
    match = re.match(r"# ([\w.]+\.(py|toml))", block)
    return match[1] if match else None


def commands() -> list[str]:
    return [line for kind, _, block in BLOCKS if kind == "sh" for line in block.splitlines()]


def test_every_command_has_an_example() -> None:
    shown = {shlex.split(line)[1] for line in commands()}
    assert shown == {command.__name__ for command in app.COMMANDS}


def test_it_names_every_make_target() -> None:
    targets = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M)
    for target in set(targets) - {"setup", "clean"}:
        assert f"make {target}" in README, target


def test_it_gives_every_exit_code_there_is() -> None:
    from bntool import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.BntoolError)}
    codes |= {app.EXIT_OK, app.EXIT_GATE, app.EXIT_BUG, app.EXIT_INTERRUPTED, app.EXIT_PIPE, 5}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.M)} == codes


def test_the_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(screen, "settings", screen.Settings())
    for kind, skipped, block in BLOCKS:
        name = name_in(block)
        if name is not None:
            Path(name).write_text(block)
        elif kind == "python":
            exec(compile(block, "README.md", "exec"), {})
        elif kind == "sh" and not skipped:
            for line in block.splitlines():
                assert app.run(shlex.split(line)[1:]) == 0, line
    assert tomllib.loads(Path("bntool.toml").read_text())
    for module in ("nets", "batches"):
        sys.modules.pop(module, None)
