"""Fold an ONNX model, file to file or in memory: no torch, and no more of it in memory than needed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnx import ModelProto

from bntool.errors import UsageError
from bntool.graphs.onnx_open import caller_inputs
from bntool.graphs.onnx_tensors import Store
from bntool.onnx_folding.folding import Folding
from bntool.onnx_folding.given import dtypes_of, insist_that_they_fit
from bntool.onnx_folding.reference import Reference
from bntool.onnx_folding.sizes import Shapes
from bntool.plan import Plan
from bntool.progress import Progress, silent
from bntool.report.folds import EXPORTED, report_of
from bntool.report.merges import with_merged
from bntool.result import FoldReport, Result
from bntool.sources.inputs import InputSpec
from bntool.sources.onnx_wire import read_skeleton
from bntool.sources.onnx_write import write
from bntool.sources.writing import beside
from bntool.verify import Verification


def fold_file(
    path: str | Path,
    output: str | Path | None = None,
    *,
    keep: Sequence[str] = (),
    merge: bool = False,
    verify: bool = True,
    tolerance: float | None = None,
    inputs: Sequence[InputSpec] = (),
    force: bool = False,
    progress: Progress = silent,
) -> FoldReport:
    """Fold the ONNX file at `path` into `output`; without an output nothing is kept of the result.

    Weights are read, folded and written one at a time. With `verify` ONNX Runtime runs both files on random
    inputs, of two batch sizes where the batch is open. `inputs` give sizes where the graph leaves them open.
    `merge` makes parallel branches and chains of convolutions one layer each.

    Raises: LoadError for a damaged file, VerificationError when outputs differ: then nothing is written.
    """
    source = Path(path)
    skeleton = read_skeleton(source)
    folding = Folding(skeleton, source, input_shapes(skeleton, inputs), tuple(keep), merge)
    progress("fold", 0, 2)
    if output is None and not verify:
        return _report(folding, folding.plan(), None)
    with room(output, force) as target:
        plan, verification = folding.write(target), None
        progress("verify", 1, 2)
        if verify:
            reference = Reference(folding.model, source, folding.shapes, tolerance)
            verification = folding.insist(reference, target, str(path))
    progress("verify", 2, 2)
    return _report(folding, plan, verification)


def _report(folding: Folding, plan: Plan, verification: Verification | None) -> FoldReport:
    report = report_of(
        plan,
        folding.graph,
        notes=folding.notes,
        keep=folding.keep,
        verification=verification,
        grown=folding.grown,
        advice=EXPORTED,
    )
    return with_merged(report, folding.merged)


def input_shapes(model: ModelProto, inputs: Sequence[InputSpec]) -> Shapes:
    """The shapes that specs give to the graph's inputs: by name, or in order where they have none.

    Raises: UsageError.
    """
    names = [value.name for value in caller_inputs(model)]
    unknown = next((spec.name for spec in inputs if spec.name and spec.name not in names), None)
    if unknown is not None or len(inputs) > len(names):
        what = f"no input {unknown}" if unknown else f"only {len(names)} inputs"
        raise UsageError(f"the graph has {what}", where="--input", next=f"It takes {', '.join(names)}.")
    shapes = {spec.name or names[place]: spec.shape for place, spec in enumerate(inputs)}
    insist_that_they_fit(model, shapes, dtypes_of(names, inputs))
    return shapes


@contextmanager
def room(output: str | Path | None, force: bool) -> Iterator[Path]:
    """Where to write: beside the output, moved there at the end; without one, where nothing stays."""
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
    merge: bool = False,
    verify: bool = True,
    tolerance: float | None = None,
    shapes: Shapes | None = None,
    progress: Progress = silent,
) -> Result[Any, FoldReport]:
    """A folded copy of an `onnx.ModelProto` or `onnx_ir.Model`, of the same class.

    Raises: VerificationError when the outputs differ.
    """
    proto, home = as_proto(model)
    insist_that_they_fit(proto, shapes or {}, {})
    folding = Folding(proto, home, shapes or {}, tuple(keep), merge)
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
            verification = folding.insist(reference, after, folding.model.graph.name)
    progress("verify", 2, 2)
    return Result(like(model, folded, home), _report(folding, plan, verification))


def shapes_of(example_inputs: Any) -> Shapes:
    """The shapes that named example inputs give to the inputs of a graph."""
    if not isinstance(example_inputs, Mapping):
        return {}
    return {name: tuple(value.shape) for name, value in example_inputs.items()}


def as_proto(model: Any) -> tuple[ModelProto, Path | None]:
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


def like(model: Any, proto: ModelProto, home: Path | None) -> Any:
    """`proto` as a model of the class that `model` is of."""
    if isinstance(model, ModelProto):
        return proto
    import onnx_ir

    result = onnx_ir.from_proto(proto)
    if home is not None:
        onnx_ir.external_data.set_base_dir(result.graph, home.parent)
    return result
