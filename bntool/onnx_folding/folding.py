"""One ONNX model being folded: planned, edited on a copy, written, and compared until it holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, inliner

from bntool.agreed import agreed_plan
from bntool.blame import complaint_about, first_wrong
from bntool.errors import VerificationError
from bntool.graphs.onnx_ir import OnnxGraph, read
from bntool.graphs.onnx_scopes import unshadowed
from bntool.graphs.onnx_tensors import Store, is_pending
from bntool.onnx_folding.carry_out import carry_out
from bntool.onnx_folding.merging import merge_branches
from bntool.onnx_folding.reference import Reference
from bntool.onnx_folding.sizes import Shapes, other_graphs
from bntool.plan import Plan
from bntool.report.merges import Merged, norms_of
from bntool.report.savings import Grown
from bntool.rewriting import OutOfRange
from bntool.sources.onnx_valid import insist_on_validity
from bntool.sources.onnx_write import all_tensors, has_external_data, write
from bntool.verify import Verification

#: a fold changes many last bits; a model that its inputs' last bits move this much less cannot be judged
AMPLIFIES = 10
RANDOM = "the model does not give the same twice on the same inputs"
INLINED = "the model's own functions were written out where they are called"
OTHER_OPSET = "functions that were not looked into, as their opset is not the model's"


@dataclass
class Folding:
    """One model being folded. `model` is the original, whose weights may lie in the file at `path`."""

    model: ModelProto
    path: Path | None
    shapes: Shapes
    keep: Sequence[str]
    merge: bool = False
    merged: list[Merged] = field(default_factory=list)
    barred: dict[Hashable, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    graph: OnnxGraph = field(init=False)
    """The graph that was planned last."""
    planned: Plan = field(init=False)
    grown: Grown | None = None

    def __post_init__(self) -> None:
        if self.model.functions:
            given, self.model = self.model, inliner.inline_local_functions(self.model)
            left = [function.name for function in self.model.functions]
            self.notes += [INLINED] if len(left) < len(given.functions) else []
            self.notes += [f"{OTHER_OPSET}: {', '.join(left)}"] if left else []
        self.model = unshadowed(self.model)

    def plan(self) -> Plan:
        """What `write` would do: new weights are computed, as they may leave their dtype's range."""
        return self._within_range(lambda graph: deque(_computed(graph), 0))

    def write(self, target: Path) -> Plan:
        """Write a folded copy; a norm with which new weights leave their dtype's range stays."""
        outside = has_external_data(self.model)
        return self._within_range(lambda graph: write(graph.model, graph.store, target, outside=outside))

    def in_memory(self) -> tuple[ModelProto, Plan]:
        """The same as a message that holds all that was computed."""
        plan = self._within_range(_store_computed)
        return self.graph.model, plan

    def _within_range(self, use: Callable[[OnnxGraph], object]) -> Plan:
        while True:
            try:
                use(self._attempt())
                return self.planned
            except OutOfRange as problem:
                self.barred[self.planned.to_blame(problem)] = problem.reason

    def _attempt(self) -> OnnxGraph:
        work = ModelProto()
        work.CopyFrom(self.model)
        store = Store(self.path)
        self.merged = self._merge(work, store)
        graph = self.graph = read(work, store, self.shapes)
        self.planned = self._planned_for_all_sizes()
        self.grown = carry_out(graph, self.planned)
        self.merged += self._merge(work, store)  # what only folding made a chain
        check(graph.model, self.model)
        return graph

    def _planned_for_all_sizes(self) -> Plan:
        others = list(other_graphs(self.graph, self.shapes))
        return agreed_plan(self.graph, others, keep=self.keep, barred=self.barred)

    def _merge(self, work: ModelProto, store: Store) -> list[Merged]:
        return merge_branches(work, store, self.shapes, self.keep) if self.merge else []

    def insist(self, reference: Reference, target: Path, where: str) -> Verification | None:
        """The verification of the folded file; None where nothing was folded that it could be about.

        Raises: VerificationError that names the norm.
        """
        verification = reference.check(target)
        if verification.ok:
            return verification
        if not self._names() and not self.merged:
            self.notes.append(f"not verified, as nothing was folded: {RANDOM}")
            return None
        if not reference.repeats():
            advice = "Nothing was written. Take out what draws random numbers, or pass --no-verify."
            raise VerificationError(f"nothing can be compared: {RANDOM}", where=where, next=advice)
        own, complaint = reference.sensitivity(), verification.complaint()
        if verification.smallest_tolerance <= AMPLIFIES * own:
            what = f"{complaint}; so is the original ({own:.2e}) when its inputs change in their last bit"
            advice = "Nothing was written: random inputs cannot tell here. Pass --tolerance or --no-verify."
            raise VerificationError(what, where=where, next=advice)

        def right(kept: tuple[str, ...]) -> bool:
            part = replace(self, keep=(*self.keep, *kept), notes=[])
            part.write(target)
            return reference.check(target).ok

        raise complaint_about(verification, first_wrong(self._names(), right), where)

    def _names(self) -> list[str]:
        """Of the norms that went, in order."""
        return [*norms_of(self.merged), *self.planned.names]


def _computed(graph: OnnxGraph) -> Iterator[tuple[TensorProto, NDArray[Any]]]:
    """The tensors that are computed when they are read, each with its values."""
    pending = [tensor for tensor in all_tensors(graph.model.graph) if is_pending(tensor)]
    return ((tensor, graph.store.array(tensor)) for tensor in pending)


def _store_computed(graph: OnnxGraph) -> None:
    for tensor, values in _computed(graph):
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = values.tobytes()


def check(model: ModelProto, original: ModelProto) -> None:
    """The result is valid ONNX if the original was."""
    try:
        insist_on_validity(model)
    except onnx.checker.ValidationError as problem:
        try:
            insist_on_validity(original)
        except onnx.checker.ValidationError:
            return
        raise AssertionError(f"folding made the model invalid: {problem}") from problem
