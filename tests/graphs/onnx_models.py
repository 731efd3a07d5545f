"""Small ONNX models made by hand, in float64 unless asked, and the oracle that judges their folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bntool.fold_onnx import fold_model
from bntool.result import FoldReport

NEWEST = onnx.defs.onnx_opset_version()
#: relative error that float64 rounding explains in a few layers
EXACT = 1e-12


def norm_weights(channels: int, prefix: str = "bn", seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random statistics and affine parameters, some gammas negative."""
    rng = np.random.default_rng([seed, channels])
    return {
        f"{prefix}.weight": rng.uniform(0.5, 1.5, channels) * rng.choice([-1, 1], channels, p=[0.2, 0.8]),
        f"{prefix}.bias": rng.uniform(-1, 1, channels),
        f"{prefix}.running_mean": rng.uniform(-1, 1, channels),
        f"{prefix}.running_var": rng.uniform(0.3, 3, channels),
    }


def norm(x: str, y: str, prefix: str = "bn", **attrs: Any) -> NodeProto:
    names = [f"{prefix}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")]
    return helper.make_node("BatchNormalization", [x, *names], [y], name=f"node_{y}", **attrs)


def weight(*shape: int, seed: int = 1) -> NDArray[np.float64]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    weights: Mapping[str, NDArray[Any]],
    *,
    opset: int = NEWEST,
    ir_version: int = 10,
    dtype: str = "float64",
) -> ModelProto:
    """A model of these nodes; floating weights are cast to `dtype`."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    stored = {n: w.astype(dtype) if w.dtype.kind == "f" else w for n, w in weights.items()}
    given = [helper.make_tensor_value_info(n, element, list(s)) for n, s in inputs.items()]
    if ir_version < 4:
        made = [(n, helper.np_dtype_to_tensor_dtype(w.dtype), w.shape) for n, w in stored.items()]
        given += [helper.make_tensor_value_info(*each) for each in made]
    graph = helper.make_graph(
        list(nodes),
        "g",
        given,
        [helper.make_tensor_value_info(n, element, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(w), n) for n, w in stored.items()],
    )
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    inferred = onnx.shape_inference.infer_shapes(result, data_prop=True)
    for mine, found in zip(result.graph.output, inferred.graph.output, strict=True):
        mine.CopyFrom(found)
        mine.type.tensor_type.shape.SetInParent()  # old operators have no inference; checkers want a shape
    onnx.checker.check_model(result)
    return result


def feeds(proto: ModelProto, batch: int = 2, seed: int = 3) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    stored = {t.name for t in proto.graph.initializer}
    result = {}
    for value in proto.graph.input:
        if value.name in stored:
            continue
        shape = [d.dim_value or batch for d in value.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        random = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        result[value.name] = random.astype(dtype)
    return result


def error(a: ModelProto, b: ModelProto, batch: int = 2) -> float:
    """The largest difference over the largest value, by ONNX's reference evaluator; same output names."""
    assert [v.name for v in a.graph.output] == [v.name for v in b.graph.output]
    given = feeds(a, batch)
    pairs = zip(*(ReferenceEvaluator(m).run(None, given) for m in (a, b)), strict=True)
    return max(float(np.abs(x - y).max() / np.abs(x).max()) for x, y in pairs)


def count(proto: ModelProto, op: str = "BatchNormalization") -> int:
    return sum(node.op_type == op for node in proto.graph.node)


def folded(proto: ModelProto, **options: Any) -> tuple[ModelProto, FoldReport]:
    """Fold and judge: same outputs at two batch sizes, original untouched, nothing left for a second."""
    before = proto.SerializeToString()
    result = fold_model(proto, verify=False, **options)
    assert proto.SerializeToString() == before
    onnx.checker.check_model(result.model)
    for batch in (2, 3):
        assert error(proto, result.model, batch) < EXACT
    again = fold_model(result.model, verify=False, **options)
    assert not again.report.folded
    return result.model, result.report


def by_runtime(proto: ModelProto) -> tuple[ModelProto, FoldReport]:
    """Fold and let ONNX Runtime judge: the reference evaluator has no old forms of some operators."""
    result = fold_model(proto)
    assert result.report.verification.ok
    assert len(result.report.verification.runs) == 2
    return result.model, result.report
