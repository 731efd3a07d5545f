"""What a model gives back, flattened to named arrays: tensors, tuples, dicts, dataclasses, nested at will."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bntool.errors import RunError

Array = NDArray[Any]


def named_arrays(value: Any, name: str = "") -> Iterator[tuple[str, Array]]:
    """Each tensor in an output with its place in it: "", "0", "boxes.1". None holds nothing.

    Raises: RunError for an object that is none of these.
    """
    if value is None:
        return
    if isinstance(value, np.ndarray | np.generic | bool | int | float | str):
        yield name, np.asarray(value)
    elif hasattr(value, "detach"):
        yield name, as_array(value)
    else:
        for key, part in parts(value, name):
            yield from named_arrays(part, f"{name}.{key}" if name else key)


def parts(value: Any, name: str) -> list[tuple[str, Any]]:
    """The members of a container with their names."""
    if isinstance(value, Mapping):
        return [(str(key), part) for key, part in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, tuple | list):
        names = getattr(value, "_fields", None) or [str(index) for index in range(len(value))]
        return list(zip(names, value, strict=True))
    what = f"an output is a {type(value).__name__}, which holds no tensors that can be compared"
    raise RunError(what, where=name, next="Return tensors in tuples, lists, dicts or dataclasses.")


def as_array(tensor: Any) -> Array:
    """A torch tensor on the CPU as NumPy; bfloat16, which NumPy has not, as float32; sparse made dense."""
    tensor = tensor.detach().cpu()
    if tensor.layout.__repr__() != "torch.strided":
        tensor = tensor.to_dense()
    if "bfloat16" in str(tensor.dtype) or "float8" in str(tensor.dtype):
        tensor = tensor.float()
    return np.asarray(tensor.resolve_conj().resolve_neg().numpy())
