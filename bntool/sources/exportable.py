"""Can an ONNX file hold what a model does with its example inputs? One run ahead of the exporter tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bntool.copying import own_inputs
from bntool.errors import RunError
from bntool.graphs.running import outputs_of
from bntool.norms.submodules import state_kept
from bntool.sources.importing import said
from bntool.sources.inputs import in_words
from bntool.sources.outputs import parts


def examined(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """What a person should know of a file of the model; dataclasses that it returns are made known to torch.

    Raises: RunError where the model raises, or returns numbers or text beside its tensors.
    """
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with state_kept(model), torch.no_grad():
        own = own_inputs((args, kwargs))
        try:
            returned = outputs_of(model, *own)
        except Exception as problem:
            advice = "Do they have the shapes and types it expects?"
            where = f"the inputs, {in_words(args, kwargs)}"
            raise RunError(f"the model raised {said(problem)}", where=where, next=advice) from problem
        now = dict(model.named_buffers())
        changed = [n for n, old in before.items() if n in now and not torch.equal(old, now[n])]
    for name, leaf in _leaves(returned):
        if not isinstance(leaf, Tensor):
            what = f"output {name} is of type {type(leaf).__name__}, and a file holds tensors alone"
            raise RunError(what, where=type(model).__name__, next="Return a tensor, or leave it out.")
    if not changed:
        return ()
    return (
        f"each call of the model changes {', '.join(changed)}: the file computes what the first one does",
    )


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no container, and not None, with its place."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        if kind not in pytree.SUPPORTED_NODES:  # with a name, so that programs of the model can be saved too
            written_as = f"{kind.__module__}.{kind.__qualname__}"
            torch.export.register_dataclass(kind, serialized_type_name=written_as)
    elif not isinstance(value, Mapping | tuple | list):
        yield from () if value is None else [(name, value)]
        return
    for key, part in parts(value, name):
        yield from _leaves(part, f"{name}.{key}" if name else key)
