"""What traced code holds instead of tensors: values that do not hide in-place arithmetic, and know sizes."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from types import BuiltinFunctionType, FrameType, FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torch.overrides import is_tensor_method_or_property

from bntool.graphs.fx_sizes import UNKNOWN
from bntool.graphs.fx_words import only_tells

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


#: functions of numpy's, and what a value behind the operator does for each
REFLECTED = {
    "add": "__radd__",
    "subtract": "__rsub__",
    "multiply": "__rmul__",
    "divide": "__rtruediv__",
    "power": "__rpow__",
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
        if name.startswith("__array_"):  # which would be another way to data than `__array__`
            raise AttributeError(name)
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

    def __round__(self, digits: int | None = None) -> Any:
        return round(self._number(), digits)

    def __mul__(self, other: Any) -> Any:
        return self._times(other, super().__mul__)  # type: ignore[misc]

    def __rmul__(self, other: Any) -> Any:
        return self._times(other, super().__rmul__)  # type: ignore[misc]

    def _times(self, other: Any, product: Callable[[Any], Any]) -> Any:
        """`[1] * x.dim()` is a list of its own, into which a forward may write before it is a shape."""
        if type(other) is list and self.tracer.is_for_all_batches(self.node):  # type: ignore[attr-defined]
            return other * int(self)
        return product(other)

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> tuple[Any, Any]:
        return other // self, other % self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """What numpy makes of a size or of several."""
        known = self.tracer.known(self.node)  # type: ignore[attr-defined]
        sizes = isinstance(known, (tuple, list)) and all(isinstance(size, (int, float)) for size in known)
        return np.array(self.tracer.read(self.node) if sizes else self._number(), dtype)  # type: ignore[attr-defined]

    def __array_ufunc__(self, function: np.ufunc, method: str, *given: Any, **options: Any) -> Any:
        """A number of numpy's and a traced tensor make what a number and a tensor do, as with torch's own."""
        reflected = REFLECTED.get(function.__name__) if method == "__call__" and given[-1] is self else None
        if reflected is not None and isinstance(given[0], np.number):
            return getattr(self, reflected)(given[0].item())
        found = [value.__array__() if isinstance(value, Value) else value for value in given]
        return getattr(function, method)(*found, **options)

    def __hash__(self) -> int:
        """A tensor's. (Whoever looks a number up would have the traced one stored for the next who does.)"""
        tracer: Any = self.tracer
        if tracer.measuring or tracer.is_tensor(self.node) or not tracer.is_plain(self.node):
            return id(self)
        raise tracer.refusal("a size, or what derives from one, is looked up")

    def __repr__(self) -> str:
        return self._in_words(sys._getframe(1), super().__repr__())

    def __format__(self, how: str) -> str:
        word = self._in_words(sys._getframe(1), super().__repr__())
        if isinstance(word, Word):
            word.refuse()
        return format(self._number(), how) if how else word

    def _in_words(self, reader: FrameType, name: str) -> str:
        """As what is known of it is written; of data there are no words that code could go by."""
        tracer: Any = self.tracer
        known = tracer.known(self.node)
        if tracer.is_tensor(self.node) or isinstance(known, (list, dict)) or only_tells(reader):
            return name
        if tracer.asks_circumstances(self.node):
            return Word.of(self)
        if known is UNKNOWN:
            raise tracer.refusal("a value that is not known is written down")
        return str(tracer.read(self.node))

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
        if isinstance(known, (tuple, list, str, dict)):  # torch asks all it is given whether it is a number
            raise TypeError(f"a {type(known).__name__} is no number")
        raise self.tracer.refusal("a number is read from data")  # type: ignore[attr-defined]


class Word(str):
    """What `str(x.device)` is: a key under which things are kept, and nothing to be looked into."""

    refusal: Callable[[str], Exception]
    """(Not the value itself, which would live for as long as the key.)"""

    @classmethod
    def of(cls, value: Value) -> Word:
        word = cls(f"Proxy({value.node.name})")
        word.refusal = value.tracer.refusal  # type: ignore[attr-defined]
        return word

    def refuse(self, *_: Any) -> Any:
        raise self.refusal("it goes on with where a tensor is")

    __hash__ = str.__hash__
    __ne__ = __contains__ = __getitem__ = startswith = endswith = split = partition = find = refuse  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) if isinstance(other, Word) else bool(self.refuse())


class Attribute(fx.proxy.Attribute, Value):
    """What `value.name` is, or the method that it calls."""


def _in_place(name: str, function: Any) -> None:
    def method(self: InPlace, *args: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, *args), {})

    method.__name__ = name
    setattr(InPlace, name, method)


for _name, _function in IN_PLACE.items():
    _in_place(_name, _function)
