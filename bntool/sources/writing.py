"""Outputs appear whole or not at all: written beside the target, then renamed over it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bntool.errors import BntoolError, RunError, UsageError


def check_target(path: Path, *, force: bool = False) -> None:
    """Raises: UsageError when `path` exists and `force` is not given, or its folder does not exist.

    A folder that is no bundle is never replaced: what else is in it would be lost.
    """
    if not path.parent.is_dir():
        raise UsageError("there is no such folder", where=str(path.parent), next="Make it first.")
    if path.is_dir() and any(path.iterdir()) and not (path / "model.json").is_file():
        advice = "Name another target: of folders only a bundle is replaced."
        raise UsageError("it is a folder with other things in it", where=str(path), next=advice)
    if path.exists() and not force:
        raise UsageError("it exists already", where=str(path), next="Pass --force to replace it.")


@contextmanager
def beside(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A path to write to that becomes `path` when the block ends without an exception.

    It has the same name, so that what is written can refer to it, and lies in a folder of its own beside the
    target; whatever else is written into that folder moves along. Raises: UsageError, RunError.
    """
    check_target(path, force=force)
    try:
        room = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as problem:
        what, advice = f"cannot be written: {problem.strerror}", "Name a target that you may write to."
        raise RunError(what, where=str(path), next=advice) from problem
    try:
        with _errors_name(path, room / path.name):
            yield room / path.name
        others = [file for file in room.iterdir() if file.name != path.name]
        for file in [*others, room / path.name]:
            _move(file, path.parent / file.name)
    finally:
        shutil.rmtree(room, ignore_errors=True)


@contextmanager
def _errors_name(path: Path, temporary: Path) -> Iterator[None]:
    """What goes wrong while writing is said of the target, not of the place it was written to meanwhile."""
    try:
        yield
    except BntoolError as problem:
        problem.where = problem.where.replace(str(temporary), str(path))
        raise


def _move(new: Path, target: Path) -> None:
    """Rename; what was at the target, if that is a folder, makes way first."""
    if not target.is_dir():
        os.replace(new, target)
        return
    aside = new.parent / f".old-{target.name}"
    os.rename(target, aside)
    os.rename(new, target)
