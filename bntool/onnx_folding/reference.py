"""What an ONNX model computes on random inputs of one or two batch sizes, to hold its fold against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from bntool.errors import RunError, UsageError
from bntool.graphs.onnx_precision import depth_of, step_of
from bntool.graphs.onnx_shapes import caller_inputs, input_shape, open_sizes
from bntool.graphs.onnx_tensors import FLOATS, numpy_dtype
from bntool.report.agreement import compare_all, tolerance_for
from bntool.sources import onnx_run
from bntool.verify import Run, Verification

Feeds = dict[str, NDArray[Any]]
Shapes = Mapping[str, Iterable[int]]
#: what is run: a file, or the bytes of a model
Runnable = Path | bytes
WORD = "ONNX Runtime's CPU cannot run it at this dtype: compared with ONNX's reference evaluator"


def feeds_of(model: ModelProto, given: Shapes, seed: int = 0) -> list[Feeds]:
    """Random inputs for the model; where its batch is open, for two batch sizes.

    Raises: UsageError for an input that is no tensor.
    """
    inputs = caller_inputs(model)
    sizes = open_sizes(model, given)
    batches = {value.type.tensor_type.shape.dim[0].dim_param for value in inputs if _open_batch(value)}
    first = {name: size for name, size in sizes.items() if name not in batches}
    rng = np.random.default_rng(seed)
    wanted = [{**sizes, **dict.fromkeys(batches, n)} for n in (1, 2)] if batches else [first]
    return [{value.name: _random(value, each, rng) for value in inputs} for each in wanted]


def _open_batch(value: ValueInfoProto) -> bool:
    dims = value.type.tensor_type.shape.dim
    return len(dims) > 0 and bool(dims[0].dim_param)


def _random(value: ValueInfoProto, sizes: Mapping[str, int], rng: np.random.Generator) -> NDArray[Any]:
    tensor = value.type.tensor_type
    if not tensor.elem_type:
        raise UsageError("it is no tensor, so no inputs can be made up", where=f"input {value.name}")
    shape = input_shape(value, sizes)
    if tensor.elem_type in FLOATS:
        return rng.standard_normal(shape).astype(numpy_dtype(tensor.elem_type))
    return rng.integers(0, 2, shape).astype(numpy_dtype(tensor.elem_type))


class Reference:
    """What the original computes on the feeds, run once."""

    def __init__(self, model: ModelProto, runnable: Runnable, given: Shapes, tolerance: float | None) -> None:
        self.runnable, self.feeds = runnable, feeds_of(model, given)
        self.tolerance = tolerance_for(step_of(model), depth_of(model)) if tolerance is None else tolerance
        self.names = tuple(value.name for value in model.graph.output)
        self.notes: tuple[str, ...] = ()
        try:
            self.outputs = list(_run(runnable, self.feeds))
        except onnx_run.NotImplementedByRuntime:
            self.notes = (WORD,)
            self.outputs = list(_evaluate(runnable, self.feeds))

    def check(self, candidate: Runnable) -> Verification:
        """`candidate` on the same feeds."""
        return self._compared(candidate, self.feeds)

    def sensitivity(self) -> float:
        """How far the original's own outputs move when its inputs change in their last bit."""
        changed = [{name: _last_bit(value) for name, value in each.items()} for each in self.feeds]
        return self._compared(self.runnable, changed).smallest_tolerance

    def _compared(self, candidate: Runnable, inputs: list[Feeds]) -> Verification:
        run = _evaluate if self.notes else _run
        runs = []
        for feeds, reference, outputs in zip(inputs, self.outputs, run(candidate, inputs), strict=True):
            agreement = compare_all(self.names, reference, outputs)
            batch = next((v.shape[0] for v in feeds.values() if v.ndim), None)
            runs.append(Run(batch, agreement))
        return Verification(self.tolerance, tuple(runs), self.notes)


def _last_bit(values: NDArray[Any]) -> NDArray[Any]:
    """Every other float one step up."""
    if values.dtype.kind != "f":
        return values
    every_other = np.arange(values.size).reshape(values.shape) % 2 == 0
    return np.where(every_other, np.nextafter(values, np.array(np.inf, values.dtype)), values)


def _run(runnable: Runnable, feeds: list[Feeds]) -> Iterator[list[NDArray[Any]]]:
    session = onnx_run.session(runnable)
    yield from [onnx_run.run(session, each) for each in feeds]


def _evaluate(runnable: Runnable, feeds: list[Feeds]) -> Iterator[list[NDArray[Any]]]:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(runnable) if isinstance(runnable, Path) else runnable)
    try:
        yield from [[np.asarray(v) for v in evaluator.run(None, each)] for each in feeds]
    except Exception as problem:
        what = "neither ONNX Runtime nor ONNX's reference evaluator can run it"
        raise RunError(what, next="Pass --no-verify, and compare it where it runs.") from problem
