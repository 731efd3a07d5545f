"""What an ONNX model computes on random inputs of one or two batch sizes, to hold its fold against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from bntool.errors import RunError
from bntool.graphs.onnx_open import caller_inputs, no_shape, open_sizes
from bntool.graphs.onnx_precision import depth_of, step_of
from bntool.graphs.onnx_tensors import FLOATS, numpy_dtype
from bntool.onnx_folding.feeds import Feeds, feeds_of, larger_feeds
from bntool.onnx_folding.sizes import Shapes
from bntool.onnx_folding.widened import widened
from bntool.report.agreement import tolerance_for
from bntool.rounding import HOPELESS
from bntool.sources import onnx_run
from bntool.sources.inputs import in_words
from bntool.sources.outputs import named_arrays
from bntool.verify import Verification, compared

Outputs = list[tuple[str, NDArray[Any]]]
#: what is run: a file, or the bytes of a model
Runnable = Path | bytes
Engine = Callable[[Feeds], list[Any]]
#: values of an input beyond which nothing is evaluated in float64: it lays convolutions out as products
LARGEST = 1 << 20
ROUNDED = tuple(numpy_dtype(t) for t in FLOATS)
#: a fold that is right in float64 may be off by this in its own type, from what the original means
STILL_GOOD = 1e-3
WORD = "ONNX Runtime's CPU cannot run it at this dtype: compared with ONNX's reference evaluator"


class Reference:
    """What the original computes on the feeds, run once."""

    def __init__(self, model: ModelProto, runnable: Runnable, given: Shapes, tolerance: float | None) -> None:
        self.runnable, self.given = runnable, given
        self.open_ended = tolerance is None
        self.tolerance = tolerance_for(step_of(model), depth_of(model)) if tolerance is None else tolerance
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
        with suppress(RunError):  # it may be for the sizes assumed alone
            more = larger_feeds(model, given)
            self.outputs += self._computed(runnable, more)
            self.feeds = self.feeds + more

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
        """`candidate` on the same feeds; where that is not enough, in float64."""
        outputs = self._computed(candidate, self.feeds)
        found = self._compared(self.outputs, outputs)
        by_runtimes = self.engine is by_runtime
        if found.ok or not by_runtimes or not self.open_ended or found.smallest_tolerance > HOPELESS:
            return found
        return self._in_float64(found, candidate, outputs)

    def _in_float64(self, found: Verification, candidate: Runnable, outputs: list[Outputs]) -> Verification:
        """What both compute where nothing rounds, if that is near what they give.

        A runtime that adds the values of a large image one by one is further off than any number of layers
        explains, and further where a norm no longer takes their mean away.
        """
        meant = self.meant
        if meant is None or self._compared(meant, self.outputs).smallest_tolerance > HOPELESS:
            return found
        exact = self._means(candidate)
        good = max(STILL_GOOD, self.tolerance)
        if exact is None or self._compared(meant, outputs).smallest_tolerance > good:
            return found
        judged = self._compared(meant, exact)
        note = f"compared in float64: its own rounding moves an output by {found.smallest_tolerance:.1e}"
        return replace(judged, notes=(*self.notes, note)) if judged.ok else found

    @cached_property
    def meant(self) -> list[Outputs] | None:
        """What the original computes where nothing rounds, if that can be found out."""
        return self._means(self.runnable)

    def _means(self, runnable: Runnable) -> list[Outputs] | None:
        """The outputs in float64; None where the evaluator cannot, or would take long."""
        if max((v.size for f in self.feeds for v in f.values()), default=0) > LARGEST:
            return None
        wide = [
            {n: v.astype(np.float64) if v.dtype in ROUNDED else v for n, v in f.items()} for f in self.feeds
        ]
        try:
            run = by_evaluator(widened(runnable))
            return [self._named(run(feeds)) for feeds in wide]
        except Exception:  # evidence is a help, never a condition
            return None

    def repeats(self) -> bool:
        """Whether the original gives the same again: a model that draws random numbers does not.

        In one session, as each begins with the same numbers.
        """
        run = self.engine(self.runnable)
        twice = [(run(feeds), self._named(run(feeds)))[1] for feeds in self.feeds]
        return self._compared(self.outputs, twice).ok

    def sensitivity(self) -> float:
        """How far the original's own outputs move when its inputs change in their last bit."""
        changed = [{name: _last_bit(value) for name, value in each.items()} for each in self.feeds]
        return self._compared(self.outputs, self._computed(self.runnable, changed)).smallest_tolerance

    def _computed(self, candidate: Runnable, inputs: list[Feeds]) -> list[Outputs]:
        run = self.engine(candidate)
        return [self._named(run(feeds)) for feeds in inputs]

    def _compared(self, reference: list[Outputs], found: list[Outputs]) -> Verification:
        runs = []
        for feeds, one, other in zip(self.feeds, reference, found, strict=True):
            batch = next((v.shape[0] for v in feeds.values() if v.ndim), None)
            runs.append(compared(batch, one, other))
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


def by_evaluator(runnable: Runnable | ModelProto) -> Engine:
    """Raises: RunError, then or when called."""
    from bntool.onnx_folding.evaluator import evaluator

    with _evaluating():
        session = evaluator(str(runnable) if isinstance(runnable, Path) else runnable)

    def run(feeds: Feeds) -> list[Any]:
        with _evaluating():
            return list(session.run(None, feeds))

    return run


@contextmanager
def _evaluating() -> Iterator[None]:
    try:
        yield
    except Exception as problem:
        what = "neither ONNX Runtime nor ONNX's reference evaluator can run it"
        raise RunError(what, next="Pass --no-verify, and compare it where it runs.") from problem
