"""Modules whose parameters get their sizes from the first input (torch's Lazy ones)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy as has_no_size

from bntool.copying import copied
from bntool.errors import UsageError
from bntool.graphs.walk import modules_in
from bntool.norms.submodules import state_kept
from bntool.pooling.batches import Call, example_call


def has_lazy_parts(model: nn.Module) -> bool:
    return bool(unsized(model))


def is_lazy(module: nn.Module) -> bool:
    """Whether the module has yet to get its sizes."""
    return isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()


def unsized(model: nn.Module) -> list[Any]:
    """The parameters and buffers that have no size yet."""
    held = [members for _, m in modules_in(model) for members in (m._parameters, m._buffers) if members]
    tensors = chain.from_iterable(members.values() for members in held)
    return [t for t in tensors if t is not None and has_no_size(t)]


def insist_on_data(model: nn.Module) -> None:
    """Raises: UsageError for a model on the meta device, whose tensors have sizes and no data."""
    for path, module in modules_in(model):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.is_meta:
                raise UsageError(
                    "it is on the meta device and has no data",
                    where=f"{path}.{name}".lstrip("."),
                    next="Give it data first: model.load_state_dict(weights, assign=True).",
                )


def stand_ins(model: nn.Module) -> dict[int, Any]:
    """New ones for them, by id: torch cannot copy them."""
    return {id(t): type(t)(device=t.device, dtype=t.dtype) for t in unsized(model)}


def give_sizes(model: nn.Module, call: Call | None) -> None:
    """Let the modules take their sizes from an example call, in place.

    Raises: UsageError without one, RunError when the model raises.
    """
    if call is None:
        raise UsageError(
            "the model has lazy modules, whose sizes come from the first input", next="Give example inputs."
        )
    with state_kept(model), torch.no_grad():
        call.run(model.eval())


def give_known_sizes(model: nn.Module, inputs: Callable[[], Any] | None) -> None:
    """`give_sizes` with the inputs that are known, if any are, and with the same draws every time."""
    if not has_lazy_parts(model) or inputs is None:
        return
    call = example_call(model, inputs())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        give_sizes(model, call)


def sized(model: nn.Module, call: Call | None) -> nn.Module:
    """The model itself, or a copy in which all parts have sizes. Raises: UsageError without a call."""
    if not has_lazy_parts(model):
        return model
    fresh = copied(model, stand_ins(model))
    give_sizes(fresh, call)
    return fresh
