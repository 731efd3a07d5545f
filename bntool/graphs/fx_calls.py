"""One call in a torch.fx graph, as the tables of `fx_kinds` read it: arguments, known numbers, parameters."""

from __future__ import annotations

from collections.abc import Container, Hashable
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from bntool.algebra.affine import Array
from bntool.graphs.aten_schema import argument, written
from bntool.graphs.base import Param
from bntool.graphs.fx_baked import held_tensor, is_computed
from bntool.graphs.fx_sizes import UNKNOWN, Sizes
from bntool.graphs.fx_values import IN_PLACE, says_in_place


def names(text: str) -> frozenset[str]:
    """A table written as words."""
    return frozenset(text.split())


#: what an attribute or method tells of a tensor without reading its data
SIZE_ATTRIBUTES = names("shape ndim dtype device is_cuda requires_grad layout itemsize names")
SIZE_METHODS = names(
    "size dim ndimension numel nelement stride is_floating_point is_complex element_size get_device "
    "is_contiguous type"
)


PLAIN = (nn.Parameter, torch.Tensor)
#: what an exporter notes of numbers that follow from sizes
OPEN = (torch.SymInt, torch.SymFloat)
IN_NUMPY = (torch.float32, torch.float64, torch.float16)


@dataclass(eq=False, slots=True)
class Spec:
    """What a table says of a call: its neutral kind, which arguments are inputs, attributes, parameters."""

    kind: str
    inputs: tuple[Any, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Param] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Call:
    """A call with its arguments read by position or by name."""

    node: fx.Node
    root: nn.Module
    sizes: Sizes
    plain: Container[fx.Node] = ()
    """Nodes that are sizes and numbers computed from them, not tensors of the model."""

    def get(self, position: int, name: str, default: Any = None) -> Any:
        if len(self.node.args) > position:
            return self.node.args[position]
        return self.node.kwargs.get(name, default)

    def number(self, position: int, name: str, default: Any = None) -> Any:
        """An argument that is a plain value (or a nest of them), traced or not; UNKNOWN when it is data."""
        return self.known(self.get(position, name, default))

    def known(self, argument: Any) -> Any:
        def value(node: fx.Node) -> Any:
            return self.sizes.value(node) if node in self.plain else UNKNOWN

        values, flat = fx.node.map_arg(argument, value), list[Any]()
        fx.node.map_aggregate(values, flat.append)
        return UNKNOWN if any(v is UNKNOWN or isinstance(v, torch.Tensor) for v in flat) else values

    def fixed(self, argument: Any) -> Any:
        """As `known`, but UNKNOWN too where the number follows from sizes that a program leaves open."""
        found: list[fx.Node] = []
        fx.node.map_arg(argument, found.append)
        noted = [node.meta.get("val") for node in found] if self.sizes.noted else []
        is_open = any(isinstance(value, OPEN) and value.node.expr.free_symbols for value in noted)
        return UNKNOWN if is_open else self.known(argument)

    def shape(self, argument: Any) -> tuple[int, ...] | None:
        value = self.sizes.value(argument) if isinstance(argument, fx.Node) else argument
        return tuple(value.shape) if isinstance(value, torch.Tensor) else None

    def rank(self, argument: Any) -> int | None:
        shape = self.shape(argument)
        return None if shape is None else len(shape)

    def param(self, argument: Any) -> Param | None:
        """The parameter an argument is, read directly or computed from others (then not writable)."""
        if not isinstance(argument, fx.Node):
            return None
        if argument.op == "get_attr":
            path = str(argument.target)
            found = param_of(self.sizes.tensor(path), path)
            return replace(found, writable=False) if path in self.sizes.constants else found
        shape = self.shape(argument)
        if shape is None or not self.sizes.is_constant(argument):
            return None
        return Param(argument.name, ("computed", argument), shape, "", _unknown_value, writable=False)

    def module(self) -> nn.Module:
        return self.sizes.module(str(self.node.target))


def _unknown_value() -> Array:
    raise AssertionError("a computed parameter is never fetched")


def tensor_key(tensor: torch.Tensor) -> Hashable:
    """Equal for tensors that share memory: what is written to one shows in the other."""
    if tensor.is_meta or tensor.numel() == 0 or tensor.layout != torch.strided or has_own_class(tensor):
        return id(tensor)
    return (tensor.get_device(), tensor.untyped_storage().data_ptr())


def has_own_class(tensor: torch.Tensor) -> bool:
    """Whether its class decides what operators do with it: a quantised or distributed tensor, a fake one."""
    cls = type(tensor)
    return cls not in PLAIN and cls.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def memory_part(tensor: torch.Tensor) -> Hashable:
    """Which part of its memory a tensor is."""
    if tensor.layout != torch.strided:
        return None
    return (tensor.storage_offset(), tensor.shape, tensor.stride())


def place_of(tensor: torch.Tensor) -> Hashable:
    """Equal for tensors that are one: the same part of the same memory."""
    return (tensor_key(tensor), memory_part(tensor))


def param_of(tensor: torch.Tensor, name: str) -> Param:
    key, part, dtype = tensor_key(tensor), memory_part(tensor), _dtype_name(tensor.dtype)
    shape, own = tuple(tensor.shape), type(tensor).__name__ if has_own_class(tensor) else ""
    return Param(name, key, shape, dtype, partial(to_float64, tensor), not own, part, own_class=own)


@cache
def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def to_float64(tensor: torch.Tensor) -> Array:
    values = tensor.detach() if tensor.is_cpu else tensor.detach().cpu()
    if values.dtype in IN_NUMPY:  # which converts small arrays in half the time
        return values.numpy().astype(np.float64)
    return np.asarray(values.double().numpy())


def module_params(module: nn.Module, path: str, names: dict[str, str]) -> dict[str, Param]:
    """The tensors of `module` under the neutral names: {neutral: attribute}."""
    result = {}
    for neutral, attr in names.items():
        held = module._parameters if attr in module._parameters else module._buffers
        tensor = held[attr] if attr in held else held_tensor(module, attr)
        if isinstance(tensor, torch.Tensor):
            result[neutral] = param_of(tensor, f"{path}.{attr}" if path else attr)
            if is_computed(module, attr):
                result[neutral] = replace(result[neutral], key=("computed", id(module), attr))
    return result


IN_PLACE_OPERATORS = frozenset(function.__name__ for function in IN_PLACE.values())


def function_name(node: fx.Node) -> str:
    """The name under which the tables know a call, without underscores; "" for foreign code."""
    if node.op == "call_method":
        return str(node.target).strip("_")
    return _known_name(node.target) if node.op == "call_function" else ""


@lru_cache(1000)
def _known_name(function: Any) -> str:
    module = getattr(function, "__module__", None) or "torch"
    if module.split(".")[0] not in ("torch", "_operator", "operator", "math", "builtins"):
        return ""
    return str(getattr(function, "__name__", "")).strip("_")


def changes_in_place(node: fx.Node) -> bool:
    """Whether a call overwrites its first argument."""
    if node.kwargs.get("inplace"):
        return True
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(written(node))
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    if node.op not in ("call_method", "call_function"):
        return False
    return says_in_place(name) or name in IN_PLACE_OPERATORS


def overwritten(node: fx.Node) -> list[fx.Node]:
    """The arguments that such a call changes: those its schema says, or the first one."""
    values = [node.args[0] if node.args else node.kwargs.get("input")]
    if isinstance(node.target, torch._ops.OpOverload):
        values = [argument(node, name) for name in written(node)]
    found: list[fx.Node] = []
    fx.node.map_arg(values, found.append)
    return found
