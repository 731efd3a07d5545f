"""Run command lines in this process, as a user would from an empty folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bntool.cli import app, screen

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Done:
    """How a command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("fold", "models/resnet.py:resnet", code=0)` in a folder that holds the sample models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(screen, "settings", screen.Settings())
    shutil.copytree(ROOT / "sample_models", tmp_path / "models")

    def run(*line: str, code: int = 0) -> Done:
        capsys.readouterr()
        found = app.run(line)
        done = Done(found, *capsys.readouterr())
        assert found == code, f"{line}: {done}"
        assert "Traceback" not in done.err
        return done

    return run
