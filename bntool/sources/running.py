"""Call a model of any kind the same way: a module, an exported program, an ONNX model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bntool.errors import RunError, UsageError
from bntool.sources.importing import said
from bntool.sources.inputs import as_call, in_words
from bntool.sources.kinds import kind_of
from bntool.sources.outputs import as_array, named_arrays
from bntool.sources.precision import full_precision
from bntool.sources.pt2 import positional

Outputs = list[tuple[str, NDArray[Any]]]


@dataclass(frozen=True)
class Runnable:
    """A model that can be called with example inputs of either kind, torch or NumPy.

    `eps` is the rounding step of the coarsest float it computes with; `depth` the number of layers that sum.
    """

    kind: str
    call: Callable[[Any], Outputs]
    eps: float
    depth: int

    def __call__(self, inputs: Any) -> Outputs:
        """Raises: RunError when the model raises."""
        try:
            return self.call(inputs)
        except (RunError, UsageError):
            raise
        except Exception as problem:
            where = f"the inputs, {in_words(*as_call(inputs))}"
            advice = "Do they have the shapes and types it expects?"
            raise RunError(f"the model raised {said(problem)}", where=where, next=advice) from problem


def runnable(model: Any) -> Runnable:
    """Raises: UsageError for what is no model."""
    kind = kind_of(model)
    return {"module": _module, "program": _program, "onnx": _onnx}[kind](model)


def _module(model: Any) -> Runnable:
    import torch

    from bntool.graphs.running import outputs_of
    from bntool.norms.submodules import state_kept

    def call(inputs: Any) -> Outputs:
        args, kwargs = to_torch(as_call(inputs))
        with state_kept(model), torch.no_grad(), full_precision():
            return list(named_arrays(outputs_of(model.eval(), args, kwargs)))

    tensors = [*model.parameters(), *model.buffers()]
    eps = torch_eps(t.dtype for t in tensors if t.numel() > 1)  # a number by itself says nothing of the rest
    return Runnable("module", call, eps, sum(t.ndim >= 2 for t in tensors))


def _program(program: Any) -> Runnable:
    import torch

    from bntool.graphs.running import outputs_of

    module, places = program.module(), positional(program)

    def call(inputs: Any) -> Outputs:
        args, kwargs = to_torch(as_call(inputs))
        if not args and all(name in kwargs for name in places):
            args = tuple(kwargs.pop(name) for name in places)
        with torch.no_grad(), _restored(module), full_precision():
            return list(named_arrays(outputs_of(module, args, kwargs)))

    tensors = [*program.state_dict.values(), *program.constants.values()]
    tensors = [t for t in tensors if isinstance(t, torch.Tensor)]
    values = (n.meta.get("val") for n in program.graph.nodes if n.op == "call_function")
    eps = torch_eps(value.dtype for value in values if isinstance(value, torch.Tensor))
    return Runnable("program", call, eps, sum(t.ndim >= 2 for t in tensors))


@contextmanager
def _restored(module: Any) -> Iterator[None]:
    """Buffers that the call changes are the program's own: afterwards they are what they were."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


def torch_eps(found: Iterable[Any]) -> float:
    """The rounding step of the coarsest float among dtypes."""
    import torch

    dtypes = {dtype for dtype in found if dtype.is_floating_point} or {torch.float32}
    dtypes |= {torch.get_autocast_dtype(d) for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)}
    return max(torch.finfo(dtype).eps for dtype in dtypes)


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Every module in eval mode for a moment, then each as it was."""
    modes = [(module, module.training) for module in model.modules()]
    if any(training for _, training in modes):  # (what a program makes refuses to be asked)
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _onnx(model: Any) -> Runnable:
    from bntool.sources import onnx_run

    serialised, names, eps, depth = _onnx_facts(model)
    session = onnx_run.session(serialised)

    def call(inputs: Any) -> Outputs:
        found = onnx_run.run(session, feeds(inputs, names))
        pairs = zip(onnx_run.output_names(session), found, strict=True)
        return [part for name, value in pairs for part in named_arrays(value, name)]

    return Runnable("onnx", call, eps, depth)


def _onnx_facts(model: Any) -> tuple[bytes, list[str], float, int]:
    """Its bytes, the names of its inputs, the rounding step of what it computes, and how many nodes sum."""
    import onnx_ir

    from bntool.graphs.onnx_precision import depth_of, step_of

    if not isinstance(model, onnx_ir.Model):
        model = onnx_ir.from_proto(model)
    proto = onnx_ir.to_proto(model)
    names = [str(v.name) for v in model.graph.inputs if v.name not in model.graph.initializers]
    return proto.SerializeToString(), names, step_of(proto), depth_of(proto)


def feeds(inputs: Any, names: list[str]) -> dict[str, NDArray[Any]]:
    """Arrays by the graph's input names: by name where they agree, else in order.

    Raises: UsageError when there are not as many inputs as the graph asks for.
    """
    args, kwargs = as_call(inputs)
    if kwargs and set(kwargs) == set(names):
        return {name: to_numpy(kwargs[name]) for name in names}
    flat = [array for _, array in named_arrays([*args, *kwargs.values()])]
    if len(flat) != len(names):
        what = f"{len(flat)} inputs were given, and the graph takes {len(names)}: {', '.join(names)}"
        raise UsageError(what, next="Give one --input for each.")
    return dict(zip(names, flat, strict=True))


def to_numpy(value: Any) -> NDArray[Any]:
    return as_array(value) if hasattr(value, "detach") else np.asarray(value)


def to_torch(inputs: Any) -> Any:
    """The same structure with every array as a tensor: copies, as a model may write into its inputs."""
    import torch
    from torch.utils._pytree import tree_map_only

    from bntool.copying import own_inputs

    return own_inputs(tree_map_only(np.ndarray, lambda array: torch.from_numpy(array.copy()), inputs))
