"""Run an ONNX file under ONNX Runtime's CPU, with its graph optimiser on or off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bntool.errors import RunError, on_one_line

OTHERWISE = "Try another opset or dtype."
Feeds = Mapping[str, NDArray[Any]]


class NotImplementedByRuntime(RunError):
    """ONNX Runtime's CPU has no kernel for a node at this dtype (float64 and bfloat16 convolutions)."""


def session(model: str | Path | bytes, *, optimised: bool = False) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU.

    Raises: NotImplementedByRuntime, RunError.
    """
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    # two runs a session: threads that spin between operators cost more than they save
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = model if isinstance(model, bytes) else str(model)
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as problem:
        raise _refusal(problem) from problem


def run(session: Any, feeds: Feeds) -> list[Any]:
    """The outputs in the graph's order: arrays, lists of them (sequences), dicts (maps). Raises: RunError."""
    try:
        outputs = session.run(None, dict(feeds))
        return [v if isinstance(v, list | dict) else np.asarray(v) for v in outputs]
    except Exception as problem:
        raise _refusal(problem) from problem


def output_names(session: Any) -> tuple[str, ...]:
    return tuple(output.name for output in session.get_outputs())


def _refusal(problem: Exception) -> RunError:
    text = on_one_line(problem, 400)
    unsupported = any(words in text for words in ("NOT_IMPLEMENTED", "bfloat16", "does not support double"))
    kind = NotImplementedByRuntime if unsupported else RunError
    foreign = "not a registered function/op" in text
    advice = "Pass --no-verify, and compare it where its operators are known." if foreign else OTHERWISE
    return kind(f"ONNX Runtime refuses the model: {text}", next=advice)
