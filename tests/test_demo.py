"""The demo: its figures, the files it writes, and that the commands it prints do what it says."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from bntool.cli import app, screen
from bntool.demo.tour import FILES, Tour, demo
from bntool.errors import UsageError


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Tour:
    return demo(tmp_path_factory.mktemp("demo"), bench_s=0.5)


def test_norms_go_in_without_moving_the_accuracy_and_out_again(tour: Tour) -> None:
    right = tour.accuracies
    assert right["plain"] > 0.85
    assert right["with norms"] == right["plain"]
    assert right["folded"] == right["calibrated"] > right["plain"]


def test_three_models_are_timed_in_two_runtimes(tour: Tour) -> None:
    assert list(tour.latency_s) == ["eager", "onnxruntime"]
    for times in tour.latency_s.values():
        assert list(times) == ["with norms", "plain", "folded"]
        assert all(0 < seconds < 1 for seconds in times.values())


def test_every_file_it_names_is_there(tour: Tour) -> None:
    assert [Path(file).name for file in tour.files] == list(FILES)
    assert all(Path(file).exists() for file in tour.files)
    assert {step.file for step in tour.steps if step.file} <= set(tour.files)


def test_the_commands_it_prints_work(tour: Tour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "settings", screen.Settings())
    commands = [shlex.split(step.command)[1:] for step in tour.steps if step.command]
    assert [line[0] for line in commands] == [
        "insert",
        "calibrate",
        "fold",
        "verify",
        "export",
        "bench",
        "bench",
    ]
    for line in commands:
        if line[0] != "bench":
            assert app.run([*line, *(["--force"] if "-o" in line else []), "-q"]) == 0, line


def test_it_does_not_write_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="--force"):
        demo(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
