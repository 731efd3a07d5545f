"""Models that Python code makes: a factory (a function or a class) in a file or in an importable module."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from bntool.errors import LoadError
from bntool.sources.refs import PythonRef


def make(ref: PythonRef) -> tuple[Any, ModuleType]:
    """The model that the factory returns, and the module the factory lives in.

    Raises: LoadError when the code is not there, raises, or returns something that is not an nn.Module.
    """
    module = import_place(ref)
    return call(find(module, ref), ref), module


def import_place(ref: PythonRef) -> ModuleType:
    if ref.is_file:
        return import_file(Path(ref.place))
    try:
        with on_path(Path.cwd(), last=True):
            return importlib.import_module(ref.place)
    except ModuleNotFoundError as problem:
        missing = problem.name or ref.place
        what = f"there is no module {missing!r}" + ("" if missing == ref.place else " (imported by it)")
        raise LoadError(what, where=str(ref), next="Check the name, or install the package.") from problem
    except Exception as problem:
        raise LoadError(f"importing it raised {said(problem)}", where=ref.place, next=DEBUG) from problem


DEBUG = "Run it by itself in Python, or add --debug for the traceback."


def import_file(path: Path) -> ModuleType:
    """Import a file by its path, as `python file.py` would: its folder is importable meanwhile."""
    path = path.resolve()
    if not path.is_file():
        raise LoadError("there is no such file", where=str(path), next="Check the path.")
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with on_path(path.parent):
            spec.loader.exec_module(module)
    except BaseException as problem:
        del sys.modules[name]
        if not isinstance(problem, Exception):
            raise
        raise LoadError(f"importing it raised {said(problem)}", where=str(path), next=DEBUG) from problem
    return module


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


def find(module: ModuleType, ref: PythonRef) -> Any:
    found: Any = module
    for part in ref.factory.split("."):
        if not hasattr(found, part):
            near = ", ".join(factories(module)[:8]) or "no functions or classes of its own"
            raise LoadError(f"it has no {ref.factory!r}", where=ref.place, next=f"It has: {near}.")
        found = getattr(found, part)
    return found


def factories(module: ModuleType) -> list[str]:
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
    return sorted(n for n in own if callable(getattr(module, n)) and n != "example_inputs" and n[0] != "_")


def names_in(path: Path) -> list[str]:
    """The functions and classes a file defines, read without running it."""
    try:
        body = ast.parse(path.read_text()).body
    except (OSError, SyntaxError, ValueError):
        return []
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [n.name for n in body if isinstance(n, kinds) and n.name != "example_inputs" and n.name[0] != "_"]


def call(factory: Callable[..., Any], ref: PythonRef) -> Any:
    import torch

    if isinstance(factory, torch.nn.Module):
        return factory
    if not callable(factory):
        raise LoadError(
            f"{ref.factory} is a {type(factory).__name__}, not a function or class", where=ref.place
        )
    try:
        with on_path(Path(ref.place).resolve().parent if ref.is_file else Path.cwd(), last=not ref.is_file):
            model = factory(**ref.kwargs)
    except Exception as problem:
        takes = f"It takes {signature(factory)}." if isinstance(problem, TypeError) else DEBUG
        raise LoadError(f"calling it raised {said(problem)}", where=str(ref), next=takes) from problem
    if not isinstance(model, torch.nn.Module):
        what = f"it returned a {type(model).__name__}, not a torch.nn.Module"
        raise LoadError(what, where=str(ref), next="Name a function that returns the model.")
    return model


def signature(factory: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(factory))
    except (TypeError, ValueError):
        return "other arguments"


def said(problem: BaseException) -> str:
    """An exception on one line."""
    text = " ".join(str(problem).split())
    return f"{type(problem).__name__}: {text[:300]}" if text else type(problem).__name__


def example_inputs(module: ModuleType, ref: PythonRef) -> Callable[[], Any] | None:
    """The file's own `example_inputs()`, given those of the factory's arguments that it asks for."""
    make_inputs = getattr(module, "example_inputs", None)
    if not callable(make_inputs):
        return None
    wanted = inspect.signature(make_inputs).parameters
    given = {name: value for name, value in ref.kwargs.items() if name in wanted}

    def inputs() -> Any:
        try:
            return make_inputs(**given)
        except Exception as problem:
            what = f"example_inputs() raised {said(problem)}"
            raise LoadError(what, where=ref.place, next="Fix it, or pass --input.") from problem

    return inputs
