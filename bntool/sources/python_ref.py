"""Models that Python code makes: a factory (a function or a class) in a file or in an importable module."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from bntool.errors import LoadError
from bntool.sources import origin
from bntool.sources.base import Loaded, Source
from bntool.sources.importing import DEBUG, import_place, said, surroundings
from bntool.sources.refs import PythonRef


def open_python(ref: PythonRef, trust: bool) -> Loaded:
    """Raises: LoadError. Code that the user names is trusted by being named."""
    model, module = make(ref)
    origin.note(model, ref, module)
    return Loaded(str(ref), "python", model, example_inputs(module, ref))


def make(ref: PythonRef) -> tuple[Any, ModuleType]:
    """The model that the factory returns, and the module the factory lives in.

    Raises: LoadError when the code is not there, raises, or returns something that is not an nn.Module.
    """
    module = import_place(ref)
    return call(find(module, ref), ref), module


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
        with surroundings(ref):
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


SOURCE = Source("python", lambda ref: isinstance(ref, PythonRef), open_python)
