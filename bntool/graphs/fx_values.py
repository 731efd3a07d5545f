"""What traced code holds instead of tensors: values that do not hide in-place arithmetic, and know sizes."""

from __future__ import annotations

import operator
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import fx
from torch.overrides import is_tensor_method_or_property

from bntool.graphs.fx_sizes import UNKNOWN

IN_PLACE = {
    "__iadd__": operator.iadd,
    "__isub__": operator.isub,
    "__imul__": operator.imul,
    "__itruediv__": operator.itruediv,
    "__ifloordiv__": operator.ifloordiv,
    "__imod__": operator.imod,
    "__ipow__": operator.ipow,
    "__iand__": operator.iand,
    "__ior__": operator.ior,
    "__ixor__": operator.ixor,
    "__setitem__": operator.setitem,
}


def says_in_place(name: str) -> bool:
    """Whether a function has the name that torch gives those that write to their first argument: add_."""
    return name.endswith("_") and not name.endswith("__")


#: what a tensor says of how it came about
HISTORY = ("grad", "grad_fn", "_base", "_version")


#: what a tensor is made of: to set it is to change the tensor
STORAGE = ("data", "real", "imag")


class InPlace(fx.Proxy):
    """A traced value that does not hide in-place arithmetic (fx notes `x *= 2` as `x * 2`)."""


class Reader(fx.Tracer):
    """Reads a pickled graph back, which runs its code once more."""

    proxy_buffer_attributes = True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return InPlace(node, self)


class Value(InPlace):
    """A traced value that knows sizes when they are asked for."""

    def __getattr__(self, name: str) -> Any:
        """Raises: AttributeError for what it does not have, so that hasattr says so, or TraceError."""
        known = self.tracer.known(self.node)  # type: ignore[attr-defined]
        sort = torch.Tensor if known is UNKNOWN and self.node.op == "placeholder" else known
        if sort is not UNKNOWN and not hasattr(sort, name):
            raise AttributeError(f"{name!r} is no attribute of it")
        if name in HISTORY:
            raise self.tracer.refusal("how a value came about is not known")  # type: ignore[attr-defined]
        return Attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in STORAGE:
            raise self.tracer.refusal("a forward puts other data in a tensor")  # type: ignore[attr-defined]
        super().__setattr__(name, value)

    def __index__(self) -> int:
        return int(self._number())

    def __int__(self) -> int:
        return int(self._number())

    def __float__(self) -> float:
        return float(self._number())

    def __len__(self) -> int:
        known = self.tracer.known(self.node)  # type: ignore[attr-defined]
        if isinstance(known, (tuple, list, torch.Tensor)):
            return int(self.tracer.read(self.node, len))  # type: ignore[attr-defined]
        raise self.tracer.refusal("the length of a traced value is not known")  # type: ignore[attr-defined]

    @classmethod
    def __torch_function__(
        cls,
        orig_method: Any,
        types: Any,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> fx.Proxy:
        """(fx searches all arguments for the tracer, however deep; mostly the first one has it.)"""
        plain = type(orig_method) in (FunctionType, BuiltinFunctionType)
        if args and type(args[0]) is cls and plain and not is_tensor_method_or_property(orig_method):
            return args[0].tracer.create_proxy("call_function", orig_method, args, kwargs or {})
        return super().__torch_function__(orig_method, types, args, kwargs)

    def _number(self) -> Any:
        known = self.tracer.known(self.node)  # type: ignore[attr-defined]
        if isinstance(known, (int, float, bool)):
            return self.tracer.read(self.node)  # type: ignore[attr-defined]
        raise self.tracer.refusal("a number is read from data")  # type: ignore[attr-defined]


class Attribute(fx.proxy.Attribute, Value):
    """What `value.name` is, or the method that it calls."""


def _in_place(name: str, function: Any) -> None:
    def method(self: InPlace, *args: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, *args), {})

    method.__name__ = name
    setattr(InPlace, name, method)


for _name, _function in IN_PLACE.items():
    _in_place(_name, _function)
