"""Data for a verb that needs activations: named like a model, given out in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bntool.errors import LoadError, UsageError
from bntool.sources.importing import import_place, said, surroundings
from bntool.sources.python_ref import find
from bntool.sources.refs import PythonRef, parse

FORMS = "a .npy, .npz or .safetensors file of inputs, or file.py:factory of an iterable of batches"


def read_batches(ref: str, *, batch_size: int = 64) -> Iterable[Any]:
    """Batches as a model's verb takes them: tensors, or dicts of tensors.

    An archive gives its array `x` (targets in `y` are left out), or its only array, or all its arrays as a
    dict of inputs. A factory gives a tensor or array, which is cut into batches, or an iterable of batches,
    used as it is.

    Raises: UsageError when the reference makes no sense, LoadError when it cannot be read.
    """
    if batch_size < 1:
        raise UsageError(f"a batch of {batch_size}", where="--batch-size", next="Give 1 or more.")
    parsed = parse(ref)
    if isinstance(parsed, PythonRef):
        return from_factory(parsed, batch_size)
    if not parsed.path.is_file():
        raise LoadError("there is no such data", where=ref, next=f"Data are {FORMS}.")
    return cut(chosen(arrays_in(parsed.path), ref), batch_size)


def from_factory(ref: PythonRef, batch_size: int) -> Iterable[Any]:
    factory = find(import_place(ref), ref)
    try:
        with surroundings(ref):
            made = factory(**ref.kwargs) if callable(factory) else factory
    except Exception as problem:
        raise LoadError(f"calling it raised {said(problem)}", where=str(ref)) from problem
    if isinstance(made, Tensor | np.ndarray):
        return cut(torch.as_tensor(made), batch_size)
    if not isinstance(made, Iterable) or isinstance(made, Mapping | str):
        advice = "Return a tensor, or an iterable of batches."
        raise LoadError(f"it returned a {type(made).__name__}", where=str(ref), next=advice)
    return made


def arrays_in(path: Path) -> dict[str, Any]:
    """The arrays of a file by name. Raises: LoadError."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        if path.suffix in (".npy", ".npz"):
            found = np.load(path, allow_pickle=False)
            return {"x": found} if isinstance(found, np.ndarray) else dict(found)
    except Exception as problem:
        raise LoadError(
            f"it cannot be read: {said(problem)}", where=str(path), next="Is it whole?"
        ) from problem
    raise UsageError("no reader for this kind of file", where=str(path), next=f"Data are {FORMS}.")


def chosen(arrays: Mapping[str, Any], where: str) -> Any:
    """What of an archive is input: a tensor, or a dict of them."""
    tensors = {name: torch.as_tensor(value) for name, value in arrays.items()}
    for name in ("x", "x_train"):
        if name in tensors:
            return tensors[name]
    inputs = {name: t for name, t in tensors.items() if name not in ("y", "y_train", "y_test")}
    if not inputs or any(not t.ndim for t in inputs.values()):
        raise LoadError("it holds no arrays of inputs", where=where, next="Store them under the name x.")
    return next(iter(inputs.values())) if len(inputs) == 1 else inputs


def cut(values: Any, batch_size: int) -> Iterator[Any]:
    """Rows in order, `batch_size` at a time, the last batch with what is left."""
    rows = len(next(iter(values.values())) if isinstance(values, dict) else values)
    for start in range(0, rows, batch_size):
        part = slice(start, start + batch_size)
        yield {k: v[part] for k, v in values.items()} if isinstance(values, dict) else values[part]
