"""Do the sizes that a caller gives fit the inputs of an ONNX model?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from onnx import ModelProto, ValueInfoProto

from bntool.errors import UsageError
from bntool.graphs.onnx_open import caller_inputs, no_shape, open_names
from bntool.graphs.onnx_tensors import dtype_name
from bntool.onnx_folding.sizes import Shapes
from bntool.sources.inputs import InputSpec


def insist_that_they_fit(model: ModelProto, shapes: Shapes, dtypes: Mapping[str, str]) -> None:
    """Raises: UsageError that says of every input what does not fit."""
    amiss = [*_amiss(model, shapes, dtypes), *_disagreeing(model, shapes)]
    if amiss:
        raise UsageError("; ".join(amiss), where="--input", next="Give sizes that the graph allows.")


def dtypes_of(names: Sequence[str], inputs: Sequence[InputSpec]) -> dict[str, str]:
    """The element types that specs ask for. (float32 is also what a spec without one says.)"""
    asked = {spec.name or names[place]: spec.dtype for place, spec in enumerate(inputs)}
    return {name: dtype for name, dtype in asked.items() if dtype != "float32"}


def _amiss(model: ModelProto, shapes: Shapes, dtypes: Mapping[str, str]) -> Iterator[str]:
    for value in caller_inputs(model):
        given, kind = shapes.get(value.name), value.type.tensor_type.elem_type
        if given is not None and not _fits(value, tuple(given)):
            yield f"{value.name} is {_written(value)}, not {'x'.join(map(str, given)) or 'a number'}"
        asked = dtypes.get(value.name)
        if asked is not None and kind and dtype_name(kind) != asked:
            yield f"{value.name} is {dtype_name(kind)}, not {asked}"


def _fits(value: ValueInfoProto, given: tuple[int, ...]) -> bool:
    names, dims = open_names(value), value.type.tensor_type.shape.dim
    if no_shape(value):
        return True
    pairs = enumerate(zip(given, dims, strict=False))
    return len(given) == len(dims) and all(p in names or size == dim.dim_value for p, (size, dim) in pairs)


def _written(value: ValueInfoProto) -> str:
    names, dims = open_names(value), value.type.tensor_type.shape.dim
    sizes = [(dim.dim_param or "?") if p in names else str(dim.dim_value) for p, dim in enumerate(dims)]
    return "x".join(sizes) or "a number"


def _disagreeing(model: ModelProto, shapes: Shapes) -> Iterator[str]:
    """One open size that is to be two."""
    sizes: dict[str, int] = {}
    for value in caller_inputs(model):
        given = tuple(shapes.get(value.name, ()))
        for place, name in open_names(value).items():
            if place < len(given) and sizes.setdefault(name, given[place]) != given[place]:
                yield f"{name} would be {sizes[name]} and {given[place]}"
