"""Write a PyTorch model as ONNX, and only if ONNX Runtime computes with the file what PyTorch computes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from bntool.errors import UsageError, VerificationError
from bntool.export_check import Check, check_file, dtype_of, in_single_precision
from bntool.progress import Progress, silent
from bntool.sources.exportable import examined
from bntool.sources.kinds import kind_of
from bntool.sources.onnx_run import NotImplementedByRuntime
from bntool.sources.onnx_wire import INLINE_LIMIT_BYTES
from bntool.sources.running import eval_mode
from bntool.sources.torch_onnx import Call, Traced, trace
from bntool.sources.writing import beside


@dataclass(frozen=True)
class ExportReport:
    """What was written and how far ONNX Runtime is from PyTorch on it.

    Units: `size_bytes` of the file and its external data together.
    """

    path: Path
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic_batch: bool
    external_data: bool
    size_bytes: int
    fold: dict[str, Any] | None
    checks: tuple[Check, ...]
    notes: tuple[str, ...]

    @property
    def verified(self) -> bool:
        return bool(self.checks) and all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "path": str(self.path),
            "opset": self.opset,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "dynamic_batch": self.dynamic_batch,
            "external_data": self.external_data,
            "size_bytes": self.size_bytes,
            "fold": self.fold,
            "verified": self.verified,
            "checks": [check.to_dict() for check in self.checks],
            "notes": list(self.notes),
        }


def export(
    model: Any,
    path: str | Path,
    example_inputs: Any,
    *,
    fold: bool = True,
    dynamic_batch: bool = False,
    opset: int | None = None,
    verify: bool = True,
    tolerance: float | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    external_data: bool | None = None,
    progress: Progress = silent,
) -> ExportReport:
    """Write `model`, in eval mode and with its norms folded, to `path` as ONNX: a module, or a program.

    The file is run under ONNX Runtime with its optimiser off and on, at two batch sizes when the batch is
    dynamic, and compared with `model` itself. `tolerance` is the largest relative error allowed (by default
    from dtype and depth). `external_data` is decided by the size of the weights unless given. The model
    passed in is not changed.

    Raises: UsageError for a call that makes no sense, RunError when torch cannot export the model or not to
    `opset`, VerificationError when the file computes something else; in each case nothing is written.
    """
    target = _checked_target(path)
    given, model = model, as_module(model)
    call = Call.of(model, example_inputs)
    notes = mode_notes(model)
    with eval_mode(model), beside(target, force=True) as written:
        progress("fold", 0, 3)
        notes += examined(model, call.args, call.kwargs)
        exported, folded = _folded(given, example_inputs) if fold else (model, None)
        progress("export", 1, 3)

        retrace = partial(
            trace,
            dynamic_batch=dynamic_batch,
            opset=opset,
            input_names=input_names,
            output_names=output_names,
        )
        traced = retrace(exported, call)
        outside = state_bytes(exported) > INLINE_LIMIT_BYTES if external_data is None else external_data
        traced.save(written, outside)
        progress("verify", 2, 3)
        checks: tuple[Check, ...] = ()
        if verify:
            checks, words = _checks(model, exported, traced, written, call, retrace, tolerance)
            _insist(checks, target)
            notes += words
        size_bytes = sum(file.stat().st_size for file in written.parent.iterdir())
    progress("verify", 3, 3)
    return ExportReport(
        target,
        traced.opset,
        traced.inputs,
        traced.outputs,
        dynamic_batch,
        outside,
        size_bytes,
        folded,
        checks,
        notes,
    )


def _checked_target(path: str | Path) -> Path:
    target = Path(path)
    if target.suffix != ".onnx":
        raise UsageError(
            "an exported model ends in .onnx", where=str(path), next=f"Write {target.stem}.onnx."
        )
    if not target.parent.is_dir():
        raise UsageError("there is no such directory", where=str(target.parent), next="Make it first.")
    return target


def as_module(model: Any) -> nn.Module:
    """A module as it is, a program as one; its modes are those it was exported in.

    Raises: UsageError for another kind of model.
    """
    kind = kind_of(model)
    if kind == "onnx":
        raise UsageError("it is an ONNX model already", where="export", next="bntool fold folds its norms.")
    if kind == "module":
        return model  # type: ignore[no-any-return]
    module: nn.Module = model.module()
    for part in module.modules():
        part.training = False
    return module


def _folded(model: Any, example_inputs: Any) -> tuple[nn.Module, dict[str, Any]]:
    from bntool.fold import fold

    result = fold(model, example_inputs)
    return as_module(result.model), result.report.to_dict()


def mode_notes(model: nn.Module) -> tuple[str, ...]:
    """What a person should know about the modes of `model` before it is written as it is in eval mode."""
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    blind = [name for name, module in model.named_modules() if _uses_batch_statistics(module)]
    notes = []
    if training:
        notes.append(f"exported in eval mode; {len(training)} modules were in train mode: {_few(training)}")
    if blind:
        notes.append(f"no running statistics, so the file normalises by each batch's own: {_few(blind)}")
    return tuple(notes)


def _uses_batch_statistics(module: nn.Module) -> bool:
    from torch.nn.modules.batchnorm import _BatchNorm

    return isinstance(module, _BatchNorm) and (module.running_mean is None or module.running_var is None)


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def state_bytes(model: nn.Module) -> int:
    """The size of all parameters and buffers, a shared one counted once."""
    storages: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storages[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return sum(storages.values())


def _checks(
    original: nn.Module,
    exported: nn.Module,
    traced: Traced,
    path: Path,
    call: Call,
    retrace: Callable[[nn.Module, Call], Traced],
    tolerance: float | None,
) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    """The file's checks, and a word where ONNX Runtime's CPU cannot run its dtype (a float64 convolution).

    Then what is exported is exported in float32 and compared with itself in PyTorch, in float32: a fold that
    has rounded to a coarser dtype was verified in that.
    """
    try:
        return check_file(original, traced, path, call, tolerance), ()
    except NotImplementedByRuntime:
        dtype = dtype_of(original, call)
        if dtype == "float32":
            raise
    with tempfile.TemporaryDirectory(prefix="float32-", dir=path.parent) as room:
        twin, single_call = in_single_precision(exported, call)
        single, file = retrace(twin, single_call), Path(room) / path.name
        single.save(file, state_bytes(twin) > INLINE_LIMIT_BYTES)
        checks = check_file(twin, single, file, single_call, tolerance)
    return checks, (f"ONNX Runtime's CPU cannot run it in {dtype}: compared was the same model in float32",)


def _insist(checks: tuple[Check, ...], target: Path) -> None:
    for check in checks:
        if not check.ok:
            advice = "Nothing was written. Pass a tolerance that you accept, or report the model."
            raise VerificationError(check.complaint(), where=str(target), next=advice)
