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
    """The inputs that the program was exported with. Raises: LoadError where it carries none."""
    if not program.example_inputs:
        raise LoadError("it carries no example inputs", where=str(path), next="Pass --input.")
    return own_inputs(program)


def own_inputs(program: Any) -> Any:
    """A tuple, or a dict where some inputs are taken by name only; None where the program carries none."""
    if program.example_inputs is None:
        return None
    args, kwargs = program.example_inputs
    return {**dict(zip(positional(program), args, strict=True)), **kwargs} if kwargs else tuple(args)


def positional(program: Any) -> list[str]:
    """What the program calls the inputs that it takes by their place: one may hold several tensors."""
    count = program.call_spec.in_spec.child(0).num_children
    signature = program.module_call_graph[0].signature
    names = getattr(signature, "forward_arg_names", None) or program.graph_signature.user_inputs
    return list(names)[:count]


SOURCE = Source("pt2", suffixed(".pt2"), open_pt2)
