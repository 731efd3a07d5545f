"""What an ONNX model computes on random inputs of one or two batch sizes, to hold its fold against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from bntool.errors import RunError
from bntool.graphs.onnx_shapes import caller_inputs, no_shape, open_sizes
from bntool.graphs.onnx_tensors import FLOATS, numpy_dtype
from bntool.onnx_folding.feeds import Feeds, Shapes, feeds_of
from bntool.report.agreement import tolerance_for
from bntool.sources import onnx_run
from bntool.sources.inputs import in_words
from bntool.sources.outputs import named_arrays
from bntool.verify import Verification, compared

#: nodes whose sums round: their number is the depth of a graph
LINEAR_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum"})
Outputs = list[tuple[str, NDArray[Any]]]
#: what is run: a file, or the bytes of a model
Runnable = Path | bytes
Engine = Callable[[Feeds], list[Any]]
WORD = "ONNX Runtime's CPU cannot run it at this dtype: compared with ONNX's reference evaluator"


def tolerance_of(model: ModelProto) -> float:
    """From the coarsest float of its tensors and inputs, and the number of nodes that sum."""
    depth = sum(node.op_type in LINEAR_OPS for node in model.graph.node)
    stored = (tensor.data_type for tensor in model.graph.initializer)
    given = (value.type.tensor_type.elem_type for value in model.graph.input)
    floats = {t for t in (*stored, *given) if t in FLOATS}
    return tolerance_for(max((_eps(t) for t in floats), default=float(np.finfo(np.float32).eps)), depth)


def _eps(data_type: int) -> float:
    dtype = numpy_dtype(data_type)
    return float(np.finfo(dtype).eps) if dtype.kind == "f" else 2.0**-7  # bfloat16


class Reference:
    """What the original computes on the feeds, run once."""

    def __init__(self, model: ModelProto, runnable: Runnable, given: Shapes, tolerance: float | None) -> None:
        self.runnable, self.given = runnable, given
        self.tolerance = tolerance_of(model) if tolerance is None else tolerance
        self.names = tuple(value.name for value in model.graph.output)
        self.notes: tuple[str, ...] = ()
        self.feeds: list[Feeds] = []
        self.outputs: list[Outputs] = []
        self.engine = by_runtime
        self.open = bool(open_sizes(model, {})) or any(map(no_shape, caller_inputs(model)))
        wanted = feeds_of(model, given)
        try:
            self._run_original(wanted)
        except onnx_run.NotImplementedByRuntime:
            self.engine, self.notes = by_evaluator, (WORD,)
            self._run_original(wanted)

    def _run_original(self, wanted: list[Feeds]) -> None:
        """On the feeds that it takes: many a batch that is said to be open is not.

        Raises: RunError when it takes none of them, or not the given one.
        """
        run, self.feeds, self.outputs = self.engine(self.runnable), [], []
        refusal: RunError | None = None
        for place, feeds in enumerate(wanted):
            try:
                self.outputs.append(self._named(run(feeds)))
                self.feeds.append(feeds)
            except RunError as problem:
                if isinstance(problem, onnx_run.NotImplementedByRuntime) or (self.given and place == 0):
                    raise self._advised(problem, feeds) from problem
                refusal = refusal or self._advised(problem, feeds)
                self.notes += (f"not compared at {in_words((), feeds)}: the original does not run there",)
        if refusal is not None and not self.feeds:
            raise refusal

    def _advised(self, problem: RunError, feeds: Feeds) -> RunError:
        if isinstance(problem, onnx_run.NotImplementedByRuntime):
            return problem
        where, name = f"with random inputs, {in_words((), feeds)}", next(iter(feeds), "x")
        advice = f"Give sizes that it takes, written as --input {name}:1x3x224x224, or pass --no-verify."
        return RunError(problem.what, where=where, next=advice if self.open else problem.next)

    def _named(self, values: list[Any]) -> Outputs:
        pairs = zip(self.names, values, strict=True)
        return [part for name, value in pairs for part in named_arrays(value, name)]

    def check(self, candidate: Runnable) -> Verification:
        """`candidate` on the same feeds."""
        return self._compared(candidate, self.feeds)

    def repeats(self) -> bool:
        """Whether the original gives the same again: a model that draws random numbers does not.

        In one session, as each begins with the same numbers.
        """
        run = self.engine(self.runnable)
        twice = [(run(feeds), self._named(run(feeds)))[1] for feeds in self.feeds]
        pairs = zip(self.outputs, twice, strict=True)
        return all(compared(None, *pair).within(self.tolerance) for pair in pairs)

    def sensitivity(self) -> float:
        """How far the original's own outputs move when its inputs change in their last bit."""
        changed = [{name: _last_bit(value) for name, value in each.items()} for each in self.feeds]
        return self._compared(self.runnable, changed).smallest_tolerance

    def _compared(self, candidate: Runnable, inputs: list[Feeds]) -> Verification:
        run, runs = self.engine(candidate), []
        for feeds, reference in zip(inputs, self.outputs, strict=True):
            batch = next((v.shape[0] for v in feeds.values() if v.ndim), None)
            runs.append(compared(batch, reference, self._named(run(feeds))))
        return Verification(self.tolerance, tuple(runs), self.notes)


def _last_bit(values: NDArray[Any]) -> NDArray[Any]:
    """Every other float one step up."""
    if values.dtype.kind != "f":
        return values
    every_other = np.arange(values.size).reshape(values.shape) % 2 == 0
    return np.where(every_other, np.nextafter(values, np.array(np.inf, values.dtype)), values)


def by_runtime(runnable: Runnable) -> Engine:
    session = onnx_run.session(runnable)
    return lambda feeds: onnx_run.run(session, feeds)


def by_evaluator(runnable: Runnable) -> Engine:
    """Raises: RunError, then or when called."""
    from onnx.reference import ReferenceEvaluator

    with _evaluating():
        evaluator = ReferenceEvaluator(str(runnable) if isinstance(runnable, Path) else runnable)

    def run(feeds: Feeds) -> list[Any]:
        with _evaluating():
            return list(evaluator.run(None, feeds))

    return run


@contextmanager
def _evaluating() -> Iterator[None]:
    try:
        yield
    except Exception as problem:
        what = "neither ONNX Runtime nor ONNX's reference evaluator can run it"
        raise RunError(what, next="Pass --no-verify, and compare it where it runs.") from problem
