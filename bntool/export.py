"""Write a PyTorch model as ONNX, and only if ONNX Runtime computes with the file what PyTorch computes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from bntool.errors import RunError, UsageError, VerificationError
from bntool.export_check import Check, check_file
from bntool.export_trace import Call, Traced, eval_mode, mode_notes, state_bytes, trace
from bntool.fold import fold as fold_norms
from bntool.progress import Progress, silent

#: protobuf's limit is 2 GiB; the graph itself and its names need some of it
INLINE_LIMIT_BYTES = 2**31 - 2**27


@dataclass(frozen=True)
class ExportReport:
    """What was written and how far ONNX Runtime is from PyTorch on it.

    Units: `size_bytes` of the file and its external data together.
    """

    path: Path
    opset: int
    dtype: str
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
            "dtype": self.dtype,
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
    model: nn.Module,
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
    """Write `model`, in eval mode and with its norms folded, to `path` as ONNX.

    The file is run under ONNX Runtime with its optimiser off and on, at two batch sizes when the batch is dynamic, and
    compared with `model` itself. `tolerance` is the largest relative error allowed (default: from dtype and depth).
    `external_data` is decided by the size of the weights unless given. The model passed in is not changed.

    Raises: UsageError for a call that makes no sense, RunError when torch cannot export the model or not to `opset`,
    VerificationError when the file computes something else; in each case nothing is written.
    """
    target = _checked_target(path)
    call = Call.of(model, example_inputs)
    notes = mode_notes(model)
    with eval_mode(model):
        progress("fold", 0, 3)
        folded = fold_norms(model, example_inputs) if fold else None
        progress("export", 1, 3)
        exported = model if folded is None else folded.model
        traced = trace(exported, call, dynamic_batch, opset, input_names, output_names)
        outside = state_bytes(exported) > INLINE_LIMIT_BYTES if external_data is None else external_data
        with tempfile.TemporaryDirectory(prefix=".bntool-", dir=target.parent) as room:
            written = Path(room) / target.name
            traced.save(written, outside)
            progress("verify", 2, 3)
            checks, words = check_file(model, traced, call, written, tolerance) if verify else ((), ())
            _insist(checks, target)
            size_bytes = _move(Path(room), target)
    progress("verify", 3, 3)
    report = None if folded is None else folded.report.to_dict()
    return _report(target, traced, outside, size_bytes, report, checks, (*notes, *words))


def _checked_target(path: str | Path) -> Path:
    target = Path(path)
    if target.suffix != ".onnx":
        raise UsageError("an exported model ends in .onnx", where=str(path), next=f"Write {target.stem}.onnx.")
    if not target.parent.is_dir():
        raise UsageError("there is no such directory", where=str(target.parent), next="Make it first.")
    return target


def _insist(checks: tuple[Check, ...], target: Path) -> None:
    for check in checks:
        if not check.ok:
            advice = "Nothing was written. Pass a tolerance that you accept, or report the model."
            raise VerificationError(check.complaint(), where=str(target), next=advice)


def _move(room: Path, target: Path) -> int:
    """Put the finished files in their place, the model last, so that it never points at missing data."""
    files = sorted(room.iterdir(), key=lambda file: file.name == target.name)
    size = sum(file.stat().st_size for file in files)
    for file in files:
        os.replace(file, target.parent / file.name)
    return size


def _report(
    target: Path,
    traced: Traced,
    outside: bool,
    size_bytes: int,
    fold: dict[str, Any] | None,
    checks: tuple[Check, ...],
    notes: tuple[str, ...],
) -> ExportReport:
    return ExportReport(
        path=target,
        opset=traced.opset,
        dtype=traced.dtype,
        inputs=traced.inputs,
        outputs=traced.outputs,
        dynamic_batch=traced.dynamic_batch,
        external_data=outside,
        size_bytes=size_bytes,
        fold=fold,
        checks=checks,
        notes=notes,
    )
