"""Give a folded or norm-free ONNX model batch norms, file to file and without torch; outputs stay.

For tools that train or quantise ONNX models and want norms behind the convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, load_model

from bntool.errors import UsageError
from bntool.fold_onnx import as_proto, input_shapes, like, room
from bntool.graphs.onnx_edit import Edit
from bntool.graphs.onnx_ir import OnnxGraph, opset_of, origin, read
from bntool.graphs.onnx_open import caller_inputs
from bntool.graphs.onnx_scopes import unshadowed
from bntool.graphs.onnx_tensors import Store
from bntool.onnx_folding.feeds import Feeds, feeds_of
from bntool.onnx_folding.folding import check
from bntool.onnx_folding.reference import Reference
from bntool.onnx_folding.sizes import Shapes
from bntool.onnx_inserting.put_in import Setting, put_in
from bntool.onnx_inserting.sites import OnnxSite, find
from bntool.onnx_inserting.statistics import observe
from bntool.placing.entry import InsertEntry
from bntool.progress import Progress, silent
from bntool.result import SCHEMA_VERSION, Result
from bntool.sources.inputs import InputSpec, as_call
from bntool.sources.onnx_wire import read_skeleton
from bntool.sources.onnx_write import has_external_data, write
from bntool.sources.running import feeds as feeds_from
from bntool.verify import Verification

RANDOM_SAMPLES = 32
"""Samples of random inputs that stand in for data, at least."""
OLDEST_OPSET = 9


@dataclass(frozen=True)
class OnnxInsertReport:
    """What was inserted, what was left out and why, how far the outputs moved.

    `data` says what the statistics come from.
    """

    data: str
    batches: int
    samples: int
    inserted: list[InsertEntry] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    verification: Verification | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        checked = None if self.verification is None else self.verification.to_dict()
        own = {name: value for name, value in vars(self).items() if name not in ("inserted", "verification")}
        entries = [asdict(entry) for entry in self.inserted]
        return {"schema_version": SCHEMA_VERSION, **own, "inserted": entries, "verification": checked}


def insert_file(
    path: str | Path,
    output: str | Path | None = None,
    *,
    data: Iterable[Any] | None = None,
    layers: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    batch_size: int | None = None,
    setting: Setting | None = None,
    inputs: Sequence[InputSpec] = (),
    force: bool = False,
    progress: Progress = silent,
) -> OnnxInsertReport:
    """Put a batch norm behind every layer of an ONNX file that takes one, into `output`; outputs stay.

    Statistics come from running the model over `data` (arrays, or tuples or dicts of them), or over random
    inputs. Without an output the result is only verified.

    Raises: UsageError (an opset before 9), LoadError, RunError (NaN or inf), VerificationError.
    """
    source = Path(path)
    model = unshadowed(read_skeleton(source))
    _refuse_old(model, str(path))
    shapes = input_shapes(model, inputs)
    graph = read(_copy(model), Store(source), shapes)
    sites = find(graph, layers=layers, include=include, exclude=exclude)
    wanted = [site for site in sites if not site.reason]
    work = _random(model, shapes) if data is None else _given(model, data)
    progress("observe", 0, 2)
    found = observe(model, source, work, {_value(site): _bytes(site, work) for site in wanted})
    edit, size = Edit(graph), batch_size or max(map(_samples, work))
    used = setting or Setting()
    entries = [put_in(edit, s, found[_value(s)], size * _per_sample(s), used) for s in wanted]
    edit.finish()
    check(graph.model, model)
    progress("verify", 1, 2)
    with room(output, force) as target:
        verification = _verified(graph, target, Reference(model, source, shapes, None), str(path))
    progress("verify", 2, 2)
    return OnnxInsertReport(
        "random inputs: give data for real statistics" if data is None else "the given data",
        len(work),
        sum(map(_samples, work)),
        entries,
        {site.layer: site.reason for site in sites if site.reason},
        verification,
        _notes(entries),
    )


#: what insert does to an ONNX model, whose options are then these
USUAL = {
    "norm": "batch",
    "where": "before-activation",
    "init": "preserve",
    "form": "module",
    "gated": False,
    "groups": None,
}


def refuse_others(given: Mapping[str, Any]) -> None:
    """Options by name, as the caller writes them. Raises: UsageError for what only modules can take."""
    for option, value in given.items():
        if value != USUAL[option.removeprefix("--")]:
            what = "an ONNX model takes batch norms behind its layers, outputs unchanged, and nothing else"
            raise UsageError(what, where=option, next="Leave it out, or insert into the module in Python.")


def insert_model(
    model: Any, example_inputs: Any = None, *, dry_run: bool = False, **options: Any
) -> Result[Any, OnnxInsertReport]:
    """A copy of an `onnx.ModelProto` or `onnx_ir.Model`, of the same class, with norms.

    Example inputs give sizes where the graph leaves them open. Options and errors are those of `insert_file`.
    """
    proto, home = as_proto(model)
    args, kwargs = ((), {}) if example_inputs is None else as_call(example_inputs)
    named = [*(("", value) for value in args), *kwargs.items()]
    specs = [InputSpec(name, tuple(value.shape)) for name, value in named]
    with TemporaryDirectory(prefix="bntool-") as folder:
        before, after = Path(folder) / "plain.onnx", Path(folder) / "normed.onnx"
        write(proto, Store(home), before)
        report = insert_file(before, None if dry_run else after, inputs=specs, **options)
        made = load_model(before if dry_run else after)
    return Result(like(model, made, None), report)


def _refuse_old(model: ModelProto, where: str) -> None:
    opset = opset_of(model)
    if opset < OLDEST_OPSET:
        advice = "Convert it with onnx.version_converter."
        raise UsageError(
            f"opset {opset}, and norms are put in from {OLDEST_OPSET} on", where=where, next=advice
        )


def _copy(model: ModelProto) -> ModelProto:
    work = ModelProto()
    work.CopyFrom(model)
    return work


def _value(site: OnnxSite) -> str:
    """The name of the value behind which the norm goes."""
    return str(origin(site.node).proto.output[0])


def _per_sample(site: OnnxSite) -> int:
    shape = origin(site.node).shape
    assert shape is not None
    return int(np.prod(shape[2:], dtype=np.int64))


def _bytes(site: OnnxSite, work: Sequence[Feeds]) -> int:
    return 8 * site.channels * _per_sample(site) * max(map(_samples, work))


def _samples(feeds: Feeds) -> int:
    return next((len(v) for v in feeds.values() if v.ndim), 1)


def _random(model: ModelProto, shapes: Shapes) -> list[Feeds]:
    work: list[Feeds] = []
    while sum(map(_samples, work)) < RANDOM_SAMPLES and len(work) < RANDOM_SAMPLES:
        work += feeds_of(model, shapes, seed=len(work))[: 1 if shapes else None]
    return work


def _given(model: ModelProto, data: Iterable[Any]) -> list[Feeds]:
    names = [value.name for value in caller_inputs(model)]
    work = [_feeds(batch, names) for batch in data]
    if not work:
        raise UsageError("the data is empty", where="insert", next="Give at least one batch.")
    return work


def _feeds(batch: Any, names: list[str]) -> dict[str, NDArray[Any]]:
    """A batch as loaders give it: what comes behind the inputs, a label say, is left out."""
    return feeds_from(tuple(batch[: len(names)]) if isinstance(batch, tuple | list) else batch, names)


def _verified(graph: OnnxGraph, target: Path, reference: Reference, where: str) -> Verification:
    """Write the result, and see that it computes the same. Raises: VerificationError."""
    write(graph.model, graph.store, target, outside=has_external_data(graph.model))
    verification = reference.check(target)
    verification.insist(where, "Nothing was written. Insert fewer norms with include or exclude.")
    return verification


def _notes(entries: Sequence[InsertEntry]) -> list[str]:
    dead = sum(entry.dead_channels for entry in entries)
    return [f"{dead} channels never vary on the data: dead, and passed on as they are"] if dead else []
