"""Data for a verb that needs activations: named like a model, given out in batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bntool.errors import LoadError, UsageError
from bntool.sources.arrays import chosen, cut, numpy_arrays, unreadable
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


def arrays_in(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name. Raises: LoadError."""
    if path.suffix in (".npy", ".npz"):
        return {name: torch.as_tensor(value) for name, value in numpy_arrays(path).items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except Exception as problem:
            raise unreadable(path, problem) from problem
    raise UsageError("no reader for this kind of file", where=str(path), next=f"Data are {FORMS}.")
