"""Tensors of an ONNX model as NumPy arrays: inline, in external data, or not computed yet.

A large tensor is only ever a note of where its bytes lie (`external_data`); it is read when asked for and not
kept, so that a model of any size costs what its largest tensor costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bntool.errors import LoadError

#: the `location` of a tensor that is computed when it is written
PENDING = "bntool:pending"
#: the `location` of a tensor whose bytes lie in the model's own file
EMBEDDED = "bntool:embedded"
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})


@dataclass(frozen=True)
class Span:
    """Where a tensor's raw bytes lie. Units: `offset` and `length` in bytes."""

    path: Path
    offset: int
    length: int


@dataclass
class Store:
    """Reads the tensors of one model.

    `path` is the model's file (None for a model in memory); external data lies beside it. `pending` computes
    the tensors that a fold has made new, by name.
    """

    path: Path | None = None
    pending: dict[str, Callable[[], NDArray[Any]]] = field(default_factory=dict)

    def array(self, tensor: TensorProto) -> NDArray[Any]:
        """The tensor's values, a fresh or read-only array of its own shape. Raises: LoadError."""
        if is_pending(tensor):
            return self.pending[tensor.name]()
        if not is_external(tensor):
            return self._inline(tensor)
        span = self.span(tensor)
        with open(span.path, "rb") as file:
            file.seek(span.offset)
            raw = file.read(span.length)
        if len(raw) != span.length:
            advice = "Fetch the external data again."
            raise LoadError(f"the data of {tensor.name} ends early", where=str(span.path), next=advice)
        return np.frombuffer(raw, numpy_dtype(tensor.data_type)).reshape(tuple(tensor.dims))

    def _inline(self, tensor: TensorProto) -> NDArray[Any]:
        try:
            return numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as problem:
            what = f"the values of {tensor.name} are not those of its shape and type"
            raise LoadError(what, where=str(self.path or "the model"), next="Export it again.") from problem

    def reader(self, tensor: TensorProto) -> Callable[[], NDArray[Any]]:
        """What gives the values later, also when the tensor has gone from the model by then."""
        return self.pending[tensor.name] if is_pending(tensor) else lambda: self.array(tensor)

    def span(self, tensor: TensorProto) -> Span:
        """Where the bytes of an external tensor lie. Raises: LoadError, also for a path elsewhere."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        size = byte_size(tensor)
        try:
            length, offset = int(entries.get("length") or size), int(entries.get("offset") or 0)
        except ValueError as problem:
            raise LoadError(
                f"where the data of {tensor.name} lies is no number", where=str(self.path)
            ) from problem
        if length != size:
            raise LoadError(
                f"{tensor.name} says {length} bytes, its shape needs {size}", where=str(self.path)
            )
        return Span(self._file(entries.get("location", ""), tensor.name), offset, length)

    def _file(self, location: str, name: str) -> Path:
        if self.path is None:
            advice = "Fold the file, or load the model with its external data."
            raise LoadError("its values are in a file that is not known", where=name, next=advice)
        if location == EMBEDDED:
            return self.path
        here = self.path.parent.resolve()
        found = (here / location).resolve()
        if Path(location).is_absolute() or not found.is_relative_to(here):
            raise LoadError(f"its data is outside the model's directory: {location}", where=name)
        if not found.is_file():
            advice = "Put it beside the model."
            raise LoadError(
                f"the external data file {location} is missing", where=str(self.path), next=advice
            )
        return found


def is_external(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def location(tensor: TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def is_pending(tensor: TensorProto) -> bool:
    return is_external(tensor) and location(tensor) == PENDING


def numpy_dtype(data_type: int) -> np.dtype[Any]:
    return np.dtype(helper.tensor_dtype_to_np_dtype(data_type))


def byte_size(tensor: TensorProto) -> int:
    """What the raw bytes of the tensor take; sub-byte types are packed."""
    count = int(np.prod(tensor.dims, dtype=np.int64))
    bits = {TensorProto.INT4: 4, TensorProto.UINT4: 4, getattr(TensorProto, "FLOAT4E2M1", -1): 4}
    if tensor.data_type in bits:
        return (count * bits[tensor.data_type] + 7) // 8
    return count * numpy_dtype(tensor.data_type).itemsize


def dtype_name(data_type: int) -> str:
    return str(numpy_dtype(data_type).name)


def set_location(tensor: TensorProto, entries: dict[str, str]) -> None:
    """Make `tensor` external data described by `entries`."""
    tensor.ClearField("raw_data")
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
