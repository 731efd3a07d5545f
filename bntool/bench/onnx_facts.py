"""Deterministic figures of an ONNX file: nodes, norms, parameters, bytes, MACs. No clock and no torch."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from bntool.bench.norm_names import norm_of

Shapes = dict[str, tuple[int, ...] | None]


def onnx_facts(path: Path) -> dict[str, Any]:
    """Counts for one run of the model: as `torch_facts`, with graph nodes for ops. MACs None where shapes
    are open.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    held = {t.name: t for t in model.graph.initializer}
    norms = Counter(filter(None, (norm_of(n.op_type) for n in model.graph.node)))
    files = [path, *path.parent.glob(path.name + ".data"), *path.parent.glob(path.name + "_data")]
    return {
        "params": sum(prod(t.dims) for t in held.values()),
        "size_bytes": sum(f.stat().st_size for f in files),
        "macs": macs(onnx.shape_inference.infer_shapes(model)),
        "ops": sum(n.op_type not in ("Identity", "Constant") for n in model.graph.node),
        "layers": sum(n.op_type in COUNTED for n in model.graph.node),
        "norms": sum(norms.values()),
        "norms_by_kind": dict(norms),
        "counted_on": "the nodes of the ONNX file",
    }


def shapes_of(graph: Any) -> Shapes:
    shapes: Shapes = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        known = all(d.HasField("dim_value") for d in dims)
        shapes.setdefault(value.name, tuple(d.dim_value for d in dims) if known else None)
    return shapes


def macs(model: Any) -> int | None:
    shapes = shapes_of(model.graph)
    counts = [node_macs(node, shapes) for node in model.graph.node if node.op_type in COUNTED]
    known = [c for c in counts if c is not None]
    return sum(known) if len(known) == len(counts) else None


def node_macs(node: Any, shapes: Shapes) -> int | None:
    source, weight, result = (shapes.get(n) for n in (node.input[0], node.input[1], node.output[0]))
    if source is None or weight is None or result is None:
        return None
    return COUNTED[node.op_type](source, weight, result, node)


def _conv(source: tuple[int, ...], weight: tuple[int, ...], result: tuple[int, ...], node: Any) -> int:
    return prod(result) * prod(weight[1:])


def _conv_transpose(
    source: tuple[int, ...], weight: tuple[int, ...], result: tuple[int, ...], node: Any
) -> int:
    return prod(source) * prod(weight[1:])


def _matmul(source: tuple[int, ...], weight: tuple[int, ...], result: tuple[int, ...], node: Any) -> int:
    transposed = node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute)
    return prod(result) * (source[-2] if transposed else source[-1])


COUNTED = {"Conv": _conv, "ConvTranspose": _conv_transpose, "MatMul": _matmul, "Gemm": _matmul}
