"""`.onnx`: read as an onnx_ir model, without importing torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bntool.errors import LoadError, UsageError
from bntool.sources.base import Loaded, Source, suffixed
from bntool.sources.inputs import DTYPES, InputSpec, numpy_inputs
from bntool.sources.refs import FileRef

#: what a dimension without a size becomes in example inputs, when it is the first: the batch
BATCH = 2


def open_onnx(ref: FileRef, trust: bool) -> Loaded:
    """Raises: LoadError when the file is damaged."""
    model = read(ref.path)
    return Loaded(str(ref), "onnx", model, lambda: numpy_inputs(signature(model, ref.path)), path=ref.path)


def read(path: Path) -> Any:
    import onnx_ir

    from bntool.graphs.onnx_tensors import Store, is_external
    from bntool.sources.onnx_valid import insist_on_validity
    from bntool.sources.onnx_wire import read_skeleton
    from bntool.sources.onnx_write import all_tensors

    with _invalid(path):
        model = onnx_ir.load(path)
    check_external_data(model, path)
    skeleton, store = read_skeleton(path), Store(path)
    for tensor in filter(is_external, all_tensors(skeleton.graph)):
        store.span(tensor)
    with _invalid(path):
        insist_on_validity(skeleton)
    return model


@contextmanager
def _invalid(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as problem:
        said = (" ".join(str(problem).split()) or type(problem).__name__)[:200].rstrip(".")
        raise LoadError(
            f"it is no valid ONNX model: {said}", where=str(path), next="Export it again."
        ) from problem


def model_bytes(model: Any) -> int:
    """The size of all initialisers of an onnx_ir model."""
    values = (value.const_value for value in model.graph.initializers.values())
    return sum(value.nbytes for value in values if value is not None)


def check_external_data(model: Any, path: Path) -> None:
    """External data has to lie beside the model: a file from elsewhere must not read others.

    Raises: LoadError.
    """
    home = path.resolve().parent
    for value in model.graph.initializers.values():
        location = getattr(value.const_value, "location", None)
        if location is None:
            continue
        data = (home / str(location)).resolve()
        if home not in data.parents:
            raise LoadError(
                f"its data is outside its folder: {location}", where=str(path), next="Move it there."
            )
        if not data.is_file():
            raise LoadError(f"its data file {location} is missing", where=str(path), next="Copy it beside.")


def signature(model: Any, path: Path) -> list[InputSpec]:
    """The inputs a graph asks for; a first dimension without a size becomes a batch of 2.

    Raises: UsageError when another dimension has no size.
    """
    return [_spec(value, path) for value in model.graph.inputs if value.name not in model.graph.initializers]


def _spec(value: Any, path: Path) -> InputSpec:
    dims = list(value.shape) if value.shape is not None else []
    sizes = [d if isinstance(d, int) else BATCH if axis == 0 else 0 for axis, d in enumerate(dims)]
    dtype = value.dtype.numpy().name if value.dtype is not None else "?"
    if value.shape is None or 0 in sizes or dtype not in DTYPES:
        shape = "x".join(str(d) for d in dims) or "no shape"
        example = f"Pass --input {value.name}:1x3x224x224 with its sizes."
        raise UsageError(
            f"the input {value.name} ({shape}, {dtype}) has no fixed size", where=str(path), next=example
        )
    return InputSpec(str(value.name), tuple(sizes), dtype)


SOURCE = Source("onnx", suffixed(".onnx"), open_onnx)
