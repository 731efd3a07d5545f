"""Fold an ONNX model, file to file or in memory: without torch, and with no more of it in memory than needed."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from bntool.errors import VerificationError
from bntool.graphs.onnx_ir import OnnxGraph, read
from bntool.graphs.onnx_tensors import Store, is_external, is_pending
from bntool.onnx_apply import OutOfRange, carry_out
from bntool.onnx_verify import Reference
from bntool.plan import Plan, make_plan
from bntool.progress import Progress, silent
from bntool.reporting import report_of
from bntool.result import FoldReport, Result
from bntool.sources.onnx_wire import read_skeleton
from bntool.sources.onnx_write import all_tensors, write
from bntool.sources.writing import beside
from bntool.verify import Verification

Shapes = Mapping[str, Iterable[int]]
INLINED = "the model's own functions were written out where they are called"


@dataclass
class Folding:
    """One model being folded. `model` is the original, whose weights may lie in the file at `path`."""

    model: ModelProto
    path: Path | None
    shapes: Shapes
    keep: Sequence[str]
    barred: dict[Hashable, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.model.functions:
            self.model = onnx.inliner.inline_local_functions(self.model)
            self.notes.append(INLINED)

    def plan(self) -> Plan:
        return make_plan(self._graph(self.model), keep=self.keep, barred=self.barred)

    def write(self, target: Path, barred: Mapping[Hashable, str] | None = None) -> Plan:
        """Write a folded copy; a norm whose new weights leave their dtype's range stays."""
        while True:
            try:
                graph, plan = self._attempt(barred or {})
                write(graph.model, graph.store, target)
                return plan
            except OutOfRange as problem:
                self.barred[problem.owner] = problem.reason

    def in_memory(self) -> tuple[ModelProto, Plan]:
        """The same as a message that holds all that was computed."""
        while True:
            try:
                graph, plan = self._attempt({})
                for tensor in all_tensors(graph.model.graph):
                    if is_pending(tensor):
                        values = graph.store.array(tensor).tobytes()
                        tensor.ClearField("external_data")
                        tensor.ClearField("data_location")
                        tensor.raw_data = values
                return graph.model, plan
            except OutOfRange as problem:
                self.barred[problem.owner] = problem.reason

    def _attempt(self, barred: Mapping[Hashable, str]) -> tuple[OnnxGraph, Plan]:
        work = ModelProto()
        work.CopyFrom(self.model)
        graph = self._graph(work)
        plan = make_plan(graph, keep=self.keep, barred={**self.barred, **barred})
        carry_out(graph, plan)
        check(graph.model, self.model)
        return graph, plan

    def _graph(self, model: ModelProto) -> OnnxGraph:
        return read(model, Store(self.path), self.shapes)

    def insist(self, plan: Plan, reference: Reference, target: Path, where: str) -> Verification:
        """The verification of the folded file. Raises: VerificationError that names the norm."""
        verification = reference.check(target)
        if not verification.ok:
            name = self._culprit(plan, reference, target)
            what = f"{verification.complaint()}; {name}"
            raise VerificationError(
                what, where=where, next="Nothing was written. Keep that norm with --keep."
            )
        return verification

    def _culprit(self, plan: Plan, reference: Reference, target: Path) -> str:
        """Bisect: the first norm with which the outputs differ."""
        norms = [step.norm for step in plan.steps]

        def good(count: int) -> bool:
            self.write(target, {norm.owner: "not in this trial" for norm in norms[count:]})
            return reference.check(target).ok

        if not good(0):
            return "they differ without any fold too: does the model draw random numbers?"
        low, high = 0, len(norms)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if good(middle) else (low, middle)
        return f"they do from the fold of {norms[high - 1].names[0]} on"


def check(model: ModelProto, original: ModelProto) -> None:
    """The result is valid ONNX if the original was; tensors outside the message are stood in for by inputs."""
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
    given = {value.name for value in bare.graph.input}
    for place in range(len(bare.graph.initializer) - 1, -1, -1):
        tensor = bare.graph.initializer[place]
        if is_external(tensor):
            if tensor.name not in given:
                made = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                bare.graph.input.append(made)
            del bare.graph.initializer[place]
    return bare


def fold_file(
    path: str | Path,
    output: str | Path | None = None,
    *,
    keep: Sequence[str] = (),
    verify: bool = True,
    tolerance: float | None = None,
    shapes: Shapes | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> FoldReport:
    """Fold the ONNX file at `path` into `output`; without an output only plan (and verify in a scratch folder).

    Weights are read, folded and written one at a time. With `verify` ONNX Runtime runs both files on random
    inputs, of two batch sizes where the batch is open. `shapes` gives sizes for inputs that leave them open.

    Raises: LoadError for a damaged file, VerificationError when outputs differ: then nothing is written.
    """
    source = Path(path)
    folding = Folding(read_skeleton(source), source, shapes or {}, tuple(keep))
    progress("fold", 0, 2)
    if output is None and not verify:
        return report_of(folding.plan(), notes=folding.notes)
    with _room(output, force) as target:
        plan, verification = folding.write(target), None
        progress("verify", 1, 2)
        if verify:
            reference = Reference(folding.model, source, folding.shapes, tolerance)
            verification = folding.insist(plan, reference, target, str(path))
    progress("verify", 2, 2)
    return report_of(plan, notes=folding.notes, verification=verification)


@contextmanager
def _room(output: str | Path | None, force: bool) -> Iterator[Path]:
    if output is not None:
        with beside(Path(output), force=force) as target:
            yield target
        return
    with tempfile.TemporaryDirectory(prefix="bntool-") as folder:
        yield Path(folder) / "folded.onnx"


def fold_model(
    model: Any,
    *,
    keep: Sequence[str] = (),
    verify: bool = True,
    tolerance: float | None = None,
    shapes: Shapes | None = None,
    progress: Progress = silent,
) -> Result[Any, FoldReport]:
    """A folded copy of an `onnx.ModelProto` or `onnx_ir.Model`, of the same class.

    Raises: VerificationError when the outputs differ.
    """
    proto, home = _as_proto(model)
    folding = Folding(proto, home, shapes or {}, tuple(keep))
    progress("fold", 0, 2)
    folded, plan = folding.in_memory()
    progress("verify", 1, 2)
    verification = None
    if verify:
        with tempfile.TemporaryDirectory(prefix="bntool-") as folder:
            before, after = Path(folder) / "original.onnx", Path(folder) / "folded.onnx"
            write(folding.model, Store(home), before)
            write(folded, Store(home), after)
            reference = Reference(folding.model, before, folding.shapes, tolerance)
            verification = folding.insist(plan, reference, after, folding.model.graph.name)
    progress("verify", 2, 2)
    return Result(_like(model, folded, home), report_of(plan, notes=folding.notes, verification=verification))


def _as_proto(model: Any) -> tuple[ModelProto, Path | None]:
    """The model as a message, and a path beside its external data."""
    if isinstance(model, ModelProto):
        return model, None
    import onnx_ir

    homes = [
        Path(value.const_value.base_dir)
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, onnx_ir.ExternalTensor)
    ]
    return onnx_ir.to_proto(model), homes[0] / "model.onnx" if homes else None


def _like(model: Any, proto: ModelProto, home: Path | None) -> Any:
    if isinstance(model, ModelProto):
        return proto
    import onnx_ir

    result = onnx_ir.from_proto(proto)
    if home is not None:
        onnx_ir.external_data.set_base_dir(result.graph, home.parent)
    return result
