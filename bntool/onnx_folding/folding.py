"""One ONNX model being folded: planned, edited on a copy, written, and compared until it holds."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, inliner

from bntool.agreed import agreed_plan
from bntool.blame import complaint_about, first_wrong
from bntool.errors import VerificationError
from bntool.graphs.onnx_ir import OnnxGraph, read
from bntool.graphs.onnx_scopes import unshadowed
from bntool.graphs.onnx_tensors import Store, is_external, is_pending
from bntool.onnx_folding.carry_out import carry_out
from bntool.onnx_folding.merging import merge_branches
from bntool.onnx_folding.reference import Reference
from bntool.onnx_folding.sizes import Shapes, other_graphs
from bntool.plan import Plan
from bntool.report.merges import Merged, norms_of
from bntool.report.savings import Grown
from bntool.rewriting import OutOfRange
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
        """What `write` would do; with merged branches there is nothing to plan on but a merged copy."""
        if self.merge:
            return self.in_memory()[1]
        self.graph = read(self.model, Store(self.path), self.shapes)
        return self._planned_for_all_sizes()

    def write(self, target: Path) -> Plan:
        """Write a folded copy; a norm with which new weights leave their dtype's range stays."""
        while True:
            try:
                graph = self._attempt()
                write(graph.model, graph.store, target, outside=has_external_data(self.model))
                return self.planned
            except OutOfRange as problem:
                self.barred[self.planned.to_blame(problem)] = problem.reason

    def in_memory(self) -> tuple[ModelProto, Plan]:
        """The same as a message that holds all that was computed."""
        while True:
            try:
                graph = self._attempt()
                for tensor in all_tensors(graph.model.graph):
                    if is_pending(tensor):
                        values = graph.store.array(tensor).tobytes()
                        tensor.ClearField("external_data")
                        tensor.ClearField("data_location")
                        tensor.raw_data = values
                return graph.model, self.planned
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


def check(model: ModelProto, original: ModelProto) -> None:
    """The result is valid ONNX if the original was; empty tensors stand in for those outside the message."""
    try:
        onnx.checker.check_model(_bare(model))
    except onnx.checker.ValidationError as problem:
        try:
            onnx.checker.check_model(_bare(original))
        except onnx.checker.ValidationError:
            return
        raise AssertionError(f"folding made the model invalid: {problem}") from problem


def _bare(model: ModelProto) -> ModelProto:
    bare = ModelProto()
    bare.CopyFrom(model)
    for tensor in all_tensors(bare.graph):
        if is_external(tensor):
            tensor.CopyFrom(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0]))
    return bare
