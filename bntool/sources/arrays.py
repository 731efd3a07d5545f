"""Batches from a NumPy file, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bntool.errors import LoadError
from bntool.sources.importing import said


def array_batches(path: Path, batch_size: int) -> Iterator[Any]:
    """Rows in order, `batch_size` at a time; an archive gives its array `x`, its only one, or all as a dict.

    Raises: LoadError.
    """
    try:
        found = np.load(path, allow_pickle=False)
        arrays = {"x": found} if isinstance(found, np.ndarray) else dict(found)
    except Exception as problem:
        what = f"it cannot be read: {said(problem)}"
        raise LoadError(what, where=str(path), next="Is it whole?") from problem
    chosen = {"x": arrays["x"]} if "x" in arrays else arrays
    if not chosen or any(not a.ndim for a in chosen.values()):
        raise LoadError("it holds no arrays of inputs", where=str(path), next="Store them under the name x.")
    rows = len(next(iter(chosen.values())))
    for start in range(0, rows, batch_size):
        part = {name: a[start : start + batch_size] for name, a in chosen.items()}
        yield next(iter(part.values())) if len(part) == 1 else part
