"""`.pt2`: programs that torch.export wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bntool.errors import LoadError
from bntool.sources import pt2_safety
from bntool.sources.base import Loaded, Source, suffixed
from bntool.sources.refs import FileRef


def open_pt2(ref: FileRef, trust: bool) -> Loaded:
    """Raises: LoadError when the file is damaged or, unless trusted, could run code."""
    if not trust:
        pt2_safety.check(ref.path)
    program = read(ref.path)
    return Loaded(str(ref), "pt2", program, lambda: sample_inputs(program, ref.path), path=ref.path)


def read(path: Path) -> Any:
    import logging

    import torch

    chatter = logging.getLogger("torch.export")
    before = chatter.level
    chatter.setLevel(logging.ERROR + 1)
    try:
        return torch.export.load(path)
    except Exception as problem:
        what = f"torch.export cannot read it ({type(problem).__name__})"
        advice = f"Export it again with torch {torch.__version__}."
        raise LoadError(what, where=str(path), next=advice) from problem
    finally:
        chatter.setLevel(before)


def sample_inputs(program: Any, path: Path) -> Any:
    """The inputs that the program was exported with, as a tuple or, when it has only named ones, a dict."""
    if not program.example_inputs:
        raise LoadError("it carries no example inputs", where=str(path), next="Pass --input.")
    positional, named = program.example_inputs
    return dict(named) if named and not positional else tuple(positional)


SOURCE = Source("pt2", suffixed(".pt2"), open_pt2)
