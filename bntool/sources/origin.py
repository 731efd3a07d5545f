"""Where a module's code is: noted on the module when it is loaded, so that a bundle can carry the code along.

The note is plain data (strings, lists, dicts), so that copies and pickles of the module keep it.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bntool.sources.refs import PythonRef

if TYPE_CHECKING:
    from torch import nn

#: folders that installers make
PACKAGES = {"site-packages", "dist-packages"}
_NOTE = "_bntool_origin"


def note(model: nn.Module, ref: PythonRef, module: ModuleType) -> None:
    """Remember the reference, and the user's own files that it took (none for an installed package)."""
    file = getattr(module, "__file__", None)
    path = Path(file).resolve() if file else None
    root = root_of(path, ref) if path is not None and not installed(path) else None
    files = own_files(path, root) if path is not None and root is not None else []
    origin = {
        "place": path.name if ref.is_file and path is not None else ref.place,
        "factory": ref.factory,
        "kwargs": dict(ref.kwargs),
        "root": str(root or ""),
        "files": [str(path) for path in files],
        "inputs": [],
    }
    set_note(model, origin)


def set_note(model: nn.Module, origin: dict[str, Any]) -> None:
    from bntool import tracing

    tracing.note(model, _NOTE, origin)


def of(model: nn.Module) -> dict[str, Any] | None:
    """What was noted, if the model was loaded from Python code."""
    return model.__dict__.get(_NOTE)


def root_of(file: Path, ref: PythonRef) -> Path:
    """The folder that has to be importable for the reference to resolve."""
    up = 0 if ref.is_file else ref.place.count(".")
    return file.parents[up + (file.name == "__init__.py")]


def installed(file: Path) -> bool:
    """Whether a file belongs to Python or an installed package, and so is there on the other side too.

    (Packages may be installed elsewhere than where this Python looks first: clusters name such folders in
    PYTHONPATH.)
    """
    return not PACKAGES.isdisjoint(file.parts) or any(home in file.parents for home in _homes())


@cache
def _homes() -> set[Path]:
    return {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib")}


def own_files(file: Path, root: Path) -> list[Path]:
    """The file and, transitively, what it imports from below `root`; read from the code, nothing is run."""
    found: list[Path] = []
    waiting = [file.resolve()]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.append(path)
            waiting += [p for name in imported(path, root) for p in files_of(name, root)]
    return found


def imported(path: Path, root: Path) -> Iterator[str]:
    """The dotted names that the code of a file imports, relative ones made absolute."""
    package = path.relative_to(root).parent.parts if root in path.parents else ()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join((*base, *((node.module,) if node.module else ())))
            yield stem
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def files_of(name: str, root: Path) -> list[Path]:
    """The file of a module below `root`, and the __init__ of each package on the way to it."""
    parts = [part for part in name.split(".") if part]
    steps = [root.joinpath(*parts[: n + 1]) for n in range(len(parts))]
    candidates = [step / "__init__.py" for step in steps] + [step.with_suffix(".py") for step in steps]
    return [path for path in candidates if path.is_file() and not installed(path)]
