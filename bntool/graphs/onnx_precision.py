"""How finely an ONNX model computes: the rounding step of what its inputs reach, and how many nodes sum."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto

from bntool.graphs.onnx_ir import captured
from bntool.graphs.onnx_open import caller_inputs
from bntool.graphs.onnx_scopes import subgraphs
from bntool.graphs.onnx_tensors import FLOATS, numpy_dtype

#: nodes whose sums round: their number is the depth of a graph
LINEAR_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum"})


def depth_of(model: ModelProto) -> int:
    return sum(node.op_type in LINEAR_OPS for node in model.graph.node)


def step_of(model: ModelProto) -> float:
    """The rounding step of the coarsest float that is computed from the inputs.

    What is stored or given in another type, and cast, rounds nothing. Where types are not known (behind an
    operator that nobody knows), all that is stored and given counts.
    """
    types = set(_computed(_typed(model), {value.name for value in caller_inputs(model)}))
    if 0 in types:
        types |= {tensor.data_type for tensor in model.graph.initializer}
        types |= {value.type.tensor_type.elem_type for value in model.graph.input}
    return max((_eps(t) for t in types if t in FLOATS), default=float(np.finfo(np.float32).eps))


def _typed(model: ModelProto) -> GraphProto:
    """The graph with the types of its values as inference finds them; its weights are not looked at."""
    bare = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    bare.graph.CopyFrom(GraphProto(name="g", node=model.graph.node, output=model.graph.output))
    given = {tensor.name: tensor for tensor in model.graph.initializer}
    bare.graph.input.extend(value for value in model.graph.input if value.name not in given)
    for name, tensor in given.items():
        made = onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
        bare.graph.input.append(made)
    try:
        return onnx.shape_inference.infer_shapes(bare).graph
    except Exception:  # types that are not known only make the judgement coarser
        return bare.graph


def _computed(graph: GraphProto, reached: set[str]) -> Iterator[int]:
    """The types (0: not known) of what nodes compute from the values `reached`, in subgraphs too."""
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
    for node in graph.node:
        if reached.isdisjoint((*node.input, *captured(node))):
            continue
        reached.update(filter(None, node.output))
        yield from (types.get(name, 0) for name in node.output if name)
        for _, inner in subgraphs(node):
            yield from _computed(inner, reached | {value.name for value in inner.input})


def _eps(data_type: int) -> float:
    return 2.0**-7 if data_type == TensorProto.BFLOAT16 else float(np.finfo(numpy_dtype(data_type)).eps)
