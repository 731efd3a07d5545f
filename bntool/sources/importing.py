"""Import the code that a reference names, as Python itself would from its folder."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from bntool.errors import LoadError, on_one_line
from bntool.sources import origin
from bntool.sources.refs import PythonRef

T = TypeVar("T")


def import_place(ref: PythonRef) -> ModuleType:
    if ref.is_file:
        return import_file(Path(ref.place))
    try:
        with on_path(Path.cwd(), last=True):
            return with_torchvision(lambda: importlib.import_module(ref.place))
    except ModuleNotFoundError as problem:
        missing = problem.name or ref.place
        inside = not f"{ref.place}.".startswith(f"{missing}.")
        what = f"there is no module {missing!r}" + (" (imported by it)" if inside else "")
        raise LoadError(what, where=str(ref), next="Check the name, or install the package.") from problem
    except Exception as problem:
        raise LoadError(f"importing it raised {said(problem)}", where=ref.place, next=DEBUG) from problem


def with_torchvision(run: Callable[[], T]) -> T:
    """Run an import, once more where it stops at a torchvision whose compiled operators do not fit torch."""
    try:
        return run()
    except RuntimeError as problem:
        if "operator torchvision::" not in str(problem):
            raise
        from bntool.sources import torchvision_ops

        if not torchvision_ops.declare():
            raise
        for half in [module for module in sys.modules if module.partition(".")[0] in ("torchvision", "timm")]:
            del sys.modules[half]
        return run()


DEBUG = "Run it by itself in Python, or add --debug for the traceback."


def import_file(path: Path) -> ModuleType:
    """Import a file by its path, as `python file.py` would: its folder is importable meanwhile."""
    path = path.resolve()
    if not path.is_file():
        raise LoadError("there is no such file", where=str(path), next="Check the path.")
    name = module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with on_path(path.parent), own_siblings(path.parent):
            with_torchvision(partial(spec.loader.exec_module, module))
    except BaseException as problem:
        del sys.modules[name]
        if not isinstance(problem, Exception):
            raise
        raise LoadError(f"importing it raised {said(problem)}", where=str(path), next=DEBUG) from problem
    return module


def module_name(path: Path) -> str:
    """The file's own name, as pickles made of its classes expect, unless another module has it."""
    taken = sys.modules.get(path.stem)
    if taken is not None and getattr(taken, "__file__", None) == str(path):
        return path.stem
    if taken is None and path.stem.isidentifier() and importlib.util.find_spec(path.stem) is None:
        return path.stem
    return f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


@contextmanager
def on_path(folder: Path, *, last: bool = False) -> Iterator[None]:
    """Make `folder` importable for a moment; `last` so that nothing in it hides an installed package."""
    entry = str(folder)
    sys.path.insert(len(sys.path) if last else 0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


@contextmanager
def own_siblings(folder: Path) -> Iterator[None]:
    """Let the modules beside a file win over modules of the same name that another folder's file imported."""
    here = {path.stem for path in folder.glob("*.py")} | {p.parent.name for p in folder.glob("*/__init__.py")}
    loaded = {name: m for name, m in sys.modules.items() if name.partition(".")[0] in here - {"bntool"}}
    foreign = {name: module for name, module in loaded.items() if is_foreign(module, folder)}
    for name in foreign:
        del sys.modules[name]
    try:
        yield
    finally:
        sys.modules.update(foreign)


def is_foreign(module: ModuleType, folder: Path) -> bool:
    """Whether a module is a user's own, from another folder."""
    file = Path(getattr(module, "__file__", None) or "")
    return (
        file.is_absolute() and folder not in file.resolve().parents and not origin.installed(file.resolve())
    )


@contextmanager
def surroundings(ref: PythonRef) -> Iterator[None]:
    """What the factory may import while it runs."""
    if ref.is_file:
        folder = Path(ref.place).resolve().parent
        with on_path(folder), own_siblings(folder):
            yield
    else:
        with on_path(Path.cwd(), last=True):
            yield


def said(problem: BaseException) -> str:
    """An exception on one line."""
    text = on_one_line(problem)
    return f"{type(problem).__name__}: {text}" if text else type(problem).__name__
