"""Mean and variance per channel of values inside an ONNX model, from running it, pooled in float64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from bntool.algebra.affine import Array
from bntool.errors import RunError
from bntool.graphs.onnx_tensors import Store
from bntool.sources import onnx_run
from bntool.sources.inputs import in_words
from bntool.sources.onnx_write import has_external_data, write

Feeds = Mapping[str, NDArray[Any]]
#: values inside the model that one run may bring out
HELD_BYTES = 1 << 29


@dataclass(frozen=True)
class Pooled:
    """`count` values per channel, their mean and sum of squared deviations.

    Shapes: mean and m2 (C,), float64.
    """

    count: int
    mean: Array
    m2: Array

    @classmethod
    def of(cls, values: NDArray[Any]) -> Pooled:
        """Shapes: values (N, C, *)."""
        rows = values.astype(np.float64).swapaxes(0, 1).reshape(values.shape[1], -1)
        mean = rows.mean(1)
        return cls(rows.shape[1], mean, np.square(rows - mean[:, None]).sum(1))

    def merge(self, other: Pooled) -> Pooled:
        """Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm" (1979)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        return Pooled(count, mean, self.m2 + other.m2 + np.square(delta) * (self.count * other.count / count))

    @property
    def variance(self) -> Array:
        """Unbiased; zero where a channel does not vary beyond what rounding explains."""
        variance = self.m2 / (self.count - 1)
        dead = variance <= np.square(1e-6 * self.mean) + 1e-14
        return np.where(dead, 0.0, variance)


def observe(
    model: ModelProto, path: Path | None, work: Sequence[Feeds], sizes: Mapping[str, int]
) -> dict[str, Pooled]:
    """The pooled moments of the values `sizes` names (with the bytes of each) over all feeds.

    Raises: RunError naming value and batch on NaN or inf, or when a channel has a single value.
    """
    found: dict[str, Pooled] = {}
    for names in _groups(sizes):
        with TemporaryDirectory(prefix="bntool-") as folder:
            target = Path(folder) / "watched.onnx"
            write(_watched(model, names), Store(path), target, outside=has_external_data(model))
            for name, value in _values(onnx_run.session(target), names, work):
                found[name] = found[name].merge(value) if name in found else value
    for name, pooled in found.items():
        if pooled.count < 2:
            raise RunError("one value per channel in all the data", where=name, next="Give more data.")
    return found


def _groups(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """The names, as many at a time as fit in memory."""
    group: list[str] = []
    held = 0
    for name, size in sizes.items():
        if group and held + size > HELD_BYTES:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def _watched(model: ModelProto, names: Iterable[str]) -> ModelProto:
    """The model with these values as its outputs too."""
    watched = ModelProto()
    watched.CopyFrom(model)
    given = {value.name for value in watched.graph.output}
    watched.graph.output.extend(ValueInfoProto(name=name) for name in names if name not in given)
    return watched


def _run(session: Any, feeds: Feeds, batch: int) -> list[NDArray[Any]]:
    """Raises: RunError naming the batch and its shapes when the model does not take it."""
    try:
        return onnx_run.run(session, feeds)
    except RunError as problem:
        where = f"batch {batch} of the data, {in_words((), feeds)}"
        advice = "Does it have the shapes and types that the graph asks for?"
        raise RunError(problem.what, where=where, next=advice) from problem


def _values(session: Any, names: list[str], work: Sequence[Feeds]) -> Iterator[tuple[str, Pooled]]:
    places = [onnx_run.output_names(session).index(name) for name in names]
    for batch, feeds in enumerate(work):
        outputs = _run(session, feeds, batch)
        for name, place in zip(names, places, strict=True):
            pooled = Pooled.of(outputs[place])
            if not (np.isfinite(pooled.mean).all() and np.isfinite(pooled.m2).all()):
                advice = "Take it out, or look at the weights."
                raise RunError(f"batch {batch} gives NaN or inf here", where=name, next=advice)
            yield name, pooled
