"""Does the exported file compute what PyTorch computes? ONNX Runtime says, with its optimiser off and on."""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bntool.report.agreement import Agreement, compare_all, tolerance_for
from bntool.sources import onnx_run
from bntool.sources.torch_onnx import Call, Traced

Arrays = list[NDArray[Any]]


@dataclass(frozen=True)
class Check:
    """One run of the file against PyTorch: with ONNX Runtime's optimiser on or off, at one batch size.

    `given`: on the inputs as they were given, or on others like them.
    """

    optimised: bool
    batch: int
    given: bool
    dtype: str
    tolerance: float
    outputs: tuple[Agreement, ...]

    @property
    def ok(self) -> bool:
        return all(output.within(self.tolerance) for output in self.outputs)

    @property
    def worst(self) -> Agreement:
        return max(self.outputs, key=lambda output: (output.non_finite, output.max_rel))

    def complaint(self) -> str:
        worst, state = self.worst, "on" if self.optimised else "off"
        return (
            f"output {worst.output} differs from PyTorch by {worst.max_rel:.2e} of its largest value "
            f"(allowed {self.tolerance:.2e}; {worst.non_finite} values not finite) at batch {self.batch}, "
            f"ONNX Runtime's optimiser {state}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "optimised": self.optimised,
            "batch": self.batch,
            "given": self.given,
            "dtype": self.dtype,
            "tolerance": self.tolerance,
            "ok": self.ok,
            "outputs": [output.to_dict() for output in self.outputs],
        }


def check_file(
    original: nn.Module, traced: Traced, path: Path, call: Call, tolerance: float | None = None
) -> tuple[Check, ...]:
    """The file at `path` against `original`, which should be in eval mode.

    Raises: NotImplementedByRuntime where ONNX Runtime's CPU has no kernel for the dtype, RunError.
    """
    runs = _reference_runs(original, traced, call)
    if tolerance is None:
        tolerance = tolerance_for(_eps(original, call), traced.depth)
    checks = []
    for optimised in (False, True):
        session = onnx_run.session(path, optimised=optimised)
        for each, reference in runs:
            feeds = dict(zip(traced.inputs, (_array(t) for t in each.tensors), strict=True))
            results = compare_all(traced.outputs, reference, onnx_run.run(session, feeds))
            dtype = dtype_of(original, call)
            checks.append(Check(optimised, each.batch, each is call, dtype, tolerance, results))
    return tuple(checks)


def _reference_runs(original: nn.Module, traced: Traced, call: Call) -> list[tuple[Call, Arrays]]:
    """What PyTorch computes on the inputs, and on others: an exporter may have taken data for constants.

    Others of the same batch are left out where the model does not take them.
    """
    runs = [(call, _computed(original, call))]
    if traced.dynamic_batch:
        other = call.resized(2 * call.batch + 1)
        return [*runs, (other, _computed(original, other))]
    other = call.resized(call.batch)
    with suppress(Exception):
        runs.append((other, _computed(original, other)))
    return runs


def _computed(original: nn.Module, call: Call) -> Arrays:
    return [_array(value) for value in call(original)]


def _array(tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.detach().cpu()
    return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def _float_dtypes(model: nn.Module, call: Call) -> list[torch.dtype]:
    tensors = (*model.parameters(), *model.buffers(), *call.tensors)
    return [tensor.dtype for tensor in tensors if tensor.is_floating_point()] or [torch.float32]


def _eps(model: nn.Module, call: Call) -> float:
    return max(torch.finfo(dtype).eps for dtype in _float_dtypes(model, call))


def dtype_of(model: nn.Module, call: Call) -> str:
    """The coarsest float type the model computes with: it decides how far rounding may carry."""
    coarsest = max(_float_dtypes(model, call), key=lambda dtype: torch.finfo(dtype).eps)
    return str(coarsest).removeprefix("torch.")


def in_single_precision(model: nn.Module, call: Call) -> tuple[nn.Module, Call]:
    """Copies of both with every float in float32."""

    def single(leaf: Any) -> Any:
        return leaf.float() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    args, kwargs = pytree.tree_map(single, (call.args, call.kwargs))
    return deepcopy(model).float(), Call(args, kwargs, call.signature)
