"""Arrays of inputs from a NumPy file and cut into batches, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bntool.errors import LoadError
from bntool.sources.importing import said

INPUTS, TARGETS = ("x", "x_train"), ("y", "y_train", "y_test")


def array_batches(path: Path, batch_size: int) -> Iterator[Any]:
    """Batches of the inputs in a .npy or .npz file. Raises: LoadError."""
    return cut(chosen(numpy_arrays(path), str(path)), batch_size)


def numpy_arrays(path: Path) -> dict[str, Any]:
    """The arrays of a file by name, "x" where it holds just one. Raises: LoadError."""
    try:
        found = np.load(path, allow_pickle=False)
        return {"x": found} if isinstance(found, np.ndarray) else dict(found)
    except Exception as problem:
        raise unreadable(path, problem) from problem


def unreadable(path: Path, problem: Exception) -> LoadError:
    return LoadError(f"it cannot be read: {said(problem)}", where=str(path), next="Is it whole?")


def chosen(arrays: Mapping[str, Any], where: str) -> Any:
    """What of an archive is input: an array or tensor, or a dict of them."""
    for name in INPUTS:
        if name in arrays:
            return arrays[name]
    inputs = {name: a for name, a in arrays.items() if name not in TARGETS}
    if not inputs or any(not a.ndim for a in inputs.values()):
        raise LoadError("it holds no arrays of inputs", where=where, next="Store them under the name x.")
    return next(iter(inputs.values())) if len(inputs) == 1 else inputs


def cut(values: Any, batch_size: int) -> Iterator[Any]:
    """Rows in order, `batch_size` at a time, the last batch with what is left."""
    rows = len(next(iter(values.values())) if isinstance(values, dict) else values)
    for start in range(0, rows, batch_size):
        part = slice(start, start + batch_size)
        yield {k: v[part] for k, v in values.items()} if isinstance(values, dict) else values[part]
