"""What an ONNX model computes on random inputs of one or two batch sizes, to hold its fold against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from bntool.errors import RunError, UsageError
from bntool.graphs.onnx_precision import depth_of, step_of
from bntool.graphs.onnx_shapes import batch_names, caller_inputs, input_shape, open_sizes
from bntool.graphs.onnx_tensors import FLOATS, numpy_dtype
from bntool.onnx_folding.sizes import larger
from bntool.onnx_folding.widened import widened
from bntool.report.agreement import compare_all, tolerance_for
from bntool.rounding import HOPELESS
from bntool.sources import onnx_run
from bntool.verify import Run, Verification

Feeds = dict[str, NDArray[Any]]
Shapes = Mapping[str, Iterable[int]]
#: what is run: a file, or the bytes of a model
Runnable = Path | bytes
Outputs = list[list[NDArray[Any]]]
#: a fold that is right in float64 may be off by this in its own type, from what the original means
#: values of an input beyond which nothing is evaluated in float64: it lays convolutions out as products
LARGEST = 1 << 20
ROUNDED = tuple(numpy_dtype(t) for t in FLOATS)
STILL_GOOD = 1e-3
WORD = "ONNX Runtime's CPU cannot run it at this dtype: compared with ONNX's reference evaluator"


def feeds_of(model: ModelProto, given: Shapes, seed: int = 0) -> list[Feeds]:
    """Random inputs for the model; where its batch is open, for two batch sizes.

    Raises: UsageError for an input that is no tensor.
    """
    inputs = caller_inputs(model)
    sizes, batches = open_sizes(model, given), batch_names(inputs)
    first = {name: size for name, size in sizes.items() if name not in batches}
    rng = np.random.default_rng(seed)
    wanted = [{**sizes, **dict.fromkeys(batches, n)} for n in (1, 2)] if batches else [first]
    return [{value.name: _random(value, each, rng) for value in inputs} for each in wanted]


def _random(value: ValueInfoProto, sizes: Mapping[str, int], rng: np.random.Generator) -> NDArray[Any]:
    tensor = value.type.tensor_type
    if not tensor.elem_type:
        raise UsageError("it is no tensor, so no inputs can be made up", where=f"input {value.name}")
    shape = input_shape(value, sizes)
    if tensor.elem_type in FLOATS:
        return rng.standard_normal(shape).astype(numpy_dtype(tensor.elem_type))
    return rng.integers(0, 2, shape).astype(numpy_dtype(tensor.elem_type))


def larger_feeds(model: ModelProto, given: Shapes) -> list[Feeds]:
    """Random inputs of the second sizes, with a batch of one; none where all sizes are known."""
    sizes, inputs = larger(model, given), caller_inputs(model)
    if sizes is None:
        return []
    sizes |= dict.fromkeys(batch_names(inputs), 1)
    rng = np.random.default_rng(1)
    return [{value.name: _random(value, sizes, rng) for value in inputs}]


class Reference:
    """What the original computes on the feeds, run once."""

    def __init__(self, model: ModelProto, runnable: Runnable, given: Shapes, tolerance: float | None) -> None:
        self.runnable, self.feeds = runnable, feeds_of(model, given)
        self.open_ended = tolerance is None
        self.tolerance = tolerance_for(step_of(model), depth_of(model)) if tolerance is None else tolerance
        self.names = tuple(value.name for value in model.graph.output)
        self.notes: tuple[str, ...] = ()
        try:
            self.outputs = list(_run(runnable, self.feeds))
        except onnx_run.NotImplementedByRuntime:
            self.notes = (WORD,)
            self.outputs = list(_evaluate(runnable, self.feeds))
        with suppress(RunError):  # it may be for the sizes assumed alone
            more = larger_feeds(model, given)
            self.outputs += self._computed(runnable, more)
            self.feeds = self.feeds + more

    def check(self, candidate: Runnable) -> Verification:
        """`candidate` on the same feeds; where that is not enough, in float64."""
        outputs = self._computed(candidate, self.feeds)
        found = self._compared(self.outputs, outputs)
        if found.ok or self.notes or not self.open_ended or found.smallest_tolerance > HOPELESS:
            return found
        return self._in_float64(found, candidate, outputs)

    def _in_float64(self, found: Verification, candidate: Runnable, outputs: Outputs) -> Verification:
        """What both compute where nothing rounds, if that is near what they give.

        A runtime that adds the values of a large image one by one is further off than any number of layers
        explains, and further where a norm no longer takes their mean away.
        """
        meant = self.meant
        if meant is None or self._compared(meant, self.outputs).smallest_tolerance > HOPELESS:
            return found
        exact = _means(candidate, self.feeds)
        good = max(STILL_GOOD, self.tolerance)
        if exact is None or self._compared(meant, outputs).smallest_tolerance > good:
            return found
        judged = self._compared(meant, exact)
        note = f"compared in float64: its own rounding moves an output by {found.smallest_tolerance:.1e}"
        return replace(judged, notes=(note,)) if judged.ok else found

    @cached_property
    def meant(self) -> Outputs | None:
        """What the original computes where nothing rounds, if that can be found out."""
        return _means(self.runnable, self.feeds)

    def sensitivity(self) -> float:
        """How far the original's own outputs move when its inputs change in their last bit."""
        changed = [{name: _last_bit(value) for name, value in each.items()} for each in self.feeds]
        return self._compared(self.outputs, self._computed(self.runnable, changed)).smallest_tolerance

    def _computed(self, candidate: Runnable, inputs: list[Feeds]) -> Outputs:
        return list((_evaluate if self.notes else _run)(candidate, inputs))

    def _compared(self, reference: Outputs, found: Outputs) -> Verification:
        runs = []
        for feeds, one, other in zip(self.feeds, reference, found, strict=True):
            batch = next((v.shape[0] for v in feeds.values() if v.ndim), None)
            runs.append(Run(batch, compare_all(self.names, one, other)))
        return Verification(self.tolerance, tuple(runs), self.notes)


def _means(runnable: Runnable, feeds: list[Feeds]) -> Outputs | None:
    """The outputs in float64; None where the evaluator cannot, or would take long."""
    if max((v.size for f in feeds for v in f.values()), default=0) > LARGEST:
        return None
    wide = [{n: v.astype(np.float64) if v.dtype in ROUNDED else v for n, v in f.items()} for f in feeds]
    try:
        return list(_evaluate(widened(runnable), wide))
    except Exception:  # evidence is a help, never a condition
        return None


def _last_bit(values: NDArray[Any]) -> NDArray[Any]:
    """Every other float one step up."""
    if values.dtype.kind != "f":
        return values
    every_other = np.arange(values.size).reshape(values.shape) % 2 == 0
    return np.where(every_other, np.nextafter(values, np.array(np.inf, values.dtype)), values)


def _run(runnable: Runnable, feeds: list[Feeds]) -> Iterator[list[NDArray[Any]]]:
    session = onnx_run.session(runnable)
    yield from [onnx_run.run(session, each) for each in feeds]


def _evaluate(runnable: Runnable | ModelProto, feeds: list[Feeds]) -> Iterator[list[NDArray[Any]]]:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(runnable) if isinstance(runnable, Path) else runnable)
    try:
        yield from [[np.asarray(v) for v in evaluator.run(None, each)] for each in feeds]
    except Exception as problem:
        what = "neither ONNX Runtime nor ONNX's reference evaluator can run it"
        raise RunError(what, next="Pass --no-verify, and compare it where it runs.") from problem
