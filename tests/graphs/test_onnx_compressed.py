"""Weights of eight bits stay so where a norm folds, and where they cannot the report says what that costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from bntool.fold_onnx import fold_file
from tests.graphs.onnx_models import by_runtime, count, model, norm, norm_weights
from tests.graphs.test_onnx_fold import N, node

INS, OUTS = 60, 40


def compressed(scale: NDArray[Any], *, before: bool = False, conv: bool = False) -> ModelProto:
    """y = norm(x @ (int8 * scale)), or the norm in front."""
    shape = (OUTS, INS, 1, 1) if conv else (INS, OUTS)
    whole = np.random.default_rng(1).integers(-128, 128, shape).astype(np.int8)
    op, x, y = ("Conv" if conv else "MatMul"), ("b" if before else "x"), ("z" if before else "y")
    layer = [node("Cast", "q", "f", to=1), node("Mul", "f s", "w"), node(op, f"{x} w", y)]
    nodes = [norm("x", "b"), *layer] if before else [*layer, norm("y", "z")]
    weights = {"q": whole, "s": scale, **norm_weights(INS if before else OUTS)}
    given = {"x": [N, INS, 3, 3] if conv else [N, INS]}
    return model(nodes, given, ["z"], weights, dtype="float32", opset=17, ir_version=8)


def scales(*shape: int) -> NDArray[Any]:
    return np.random.default_rng(2).uniform(0.01, 0.02, shape)


def stored(proto: ModelProto) -> dict[str, int]:
    """Bytes of the tensors by type."""
    arrays = [numpy_helper.to_array(tensor) for tensor in proto.graph.initializer]
    kinds = {str(a.dtype) for a in arrays}
    return {kind: sum(a.nbytes for a in arrays if a.dtype == kind) for kind in kinds}


@pytest.mark.parametrize(
    ("scale", "conv"),
    [(scales(OUTS), False), (scales(1, OUTS), False), (scales(), False), (scales(OUTS, 1, 1, 1), True)],
    ids=["row", "matrix", "number", "convolution"],
)
def test_the_norm_goes_into_the_scale(scale: NDArray[Any], conv: bool) -> None:
    made = compressed(scale, conv=conv)
    proto, report = by_runtime(made)
    assert count(proto) == 0
    assert stored(proto) == {"int8": INS * OUTS, "float32": 8 * OUTS}
    saved = sum(stored(made).values()) - sum(stored(proto).values())
    assert report.folded[0].bytes_saved == saved


def test_a_scale_for_everything_takes_a_norm_in_front() -> None:
    proto, _ = by_runtime(compressed(scales(), before=True))
    assert count(proto) == 0
    assert stored(proto) == {"int8": INS * OUTS, "float32": 4 * (INS + OUTS)}


def test_what_a_weight_multiplied_out_costs_is_said(tmp_path: Path) -> None:
    """A scale of each column and a map of the rows would be a scale as large as the weight."""
    onnx.save(compressed(scales(OUTS), before=True), tmp_path / "a.onnx")
    report = fold_file(tmp_path / "a.onnx", tmp_path / "b.onnx")
    before, after = onnx.load(tmp_path / "a.onnx"), onnx.load(tmp_path / "b.onnx")
    assert len(report.folded) == 1
    assert report.folded[0].bytes_saved == sum(stored(before).values()) - sum(stored(after).values())
    assert report.folded[0].bytes_saved < 0
