"""Random inputs for an ONNX model, of the sizes that it or the caller gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from bntool.errors import UsageError
from bntool.graphs.onnx_open import batch_names, caller_inputs, input_shape, open_names, open_sizes
from bntool.graphs.onnx_tensors import FLOATS, numpy_dtype
from bntool.onnx_folding.sizes import Shapes, larger

Feeds = dict[str, NDArray[Any]]


def feeds_of(model: ModelProto, given: Shapes, seed: int = 0) -> list[Feeds]:
    """Random inputs for the model; where its batch is open, for the given size and for two more.

    Raises: UsageError for an input that is no tensor.
    """
    inputs = caller_inputs(model)
    rng = np.random.default_rng(seed)
    wanted = _wanted(inputs, open_sizes(model, given), given)
    return [{value.name: _random(value, each, rng) for value in inputs} for each in wanted]


def _wanted(
    inputs: Iterable[ValueInfoProto], sizes: Mapping[str, int], given: Shapes
) -> list[dict[str, int]]:
    """The open sizes of each run."""
    batches = {value.name: name for value in inputs if (name := open_names(value).get(0))}
    if not batches:
        return [dict(sizes)]
    first = [dict(sizes)] if batches.keys() & given.keys() else []
    others = [{**sizes, **dict.fromkeys(batches.values(), n)} for n in (1, 2)]
    return [*first, *(other for other in others if other not in first)]


def larger_feeds(model: ModelProto, given: Shapes) -> list[Feeds]:
    """Random inputs of the second sizes, with a batch of one; none where all sizes are known."""
    sizes, inputs = larger(model, given), caller_inputs(model)
    if sizes is None:
        return []
    sizes |= dict.fromkeys(batch_names(inputs), 1)
    rng = np.random.default_rng(1)
    return [{value.name: _random(value, sizes, rng) for value in inputs}]


def _random(value: ValueInfoProto, sizes: Mapping[str, int], rng: np.random.Generator) -> NDArray[Any]:
    tensor = value.type.tensor_type
    if not tensor.elem_type:
        raise UsageError("it is no tensor, so no inputs can be made up", where=f"input {value.name}")
    shape = input_shape(value, sizes)
    if tensor.elem_type in FLOATS:
        return rng.standard_normal(shape).astype(numpy_dtype(tensor.elem_type))
    return rng.integers(0, 2, shape).astype(numpy_dtype(tensor.elem_type))
