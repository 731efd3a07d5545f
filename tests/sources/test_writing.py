"""What is written replaces what the user wants replaced, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from bntool.errors import RunError, UsageError
from bntool.sources.writing import beside


@pytest.mark.parametrize("name", ["folder", "model.onnx", "."])
def test_a_folder_of_other_things_is_never_replaced(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="other things"), beside(folder, force=True):
        raise NotImplementedError
    assert (folder / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("content", [None, "model.json"])
def test_a_bundle_and_an_empty_folder_are(content: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if content is not None:
        (folder / content).write_text("{}")
    with beside(folder, force=True) as target:
        target.write_text("new")
    assert folder.read_text() == "new"


def test_where_nothing_can_be_written_is_a_message(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match="cannot be written: File name too long"),
        beside(tmp_path / ("x" * 250)),
    ):
        raise NotImplementedError
