"""An ONNX model with every float in float64, where sums do not round: what it means, not what it gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from bntool.graphs.onnx_scopes import subgraphs
from bntool.graphs.onnx_tensors import FLOATS

#: attributes that name the type of a result
TYPES = ("to", "dtype")
#: of these nodes, what is not said is float32
ZEROS = "ConstantOfShape"
NUMBERS = ("value_float", "value_floats")


def widened(source: Path | bytes) -> ModelProto:
    """The model of a file or of its bytes, weights and all. No cast between floats rounds any more."""
    model = onnx.load(source) if isinstance(source, Path) else onnx.load_from_string(source)
    _widen(model.graph)
    return model


def _widen(graph: GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in FLOATS:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del graph.value_info[:]
    for node in graph.node:
        _widen_attributes(node)
        for _, inner in subgraphs(node):
            _widen(inner)


def _widen_attributes(node: NodeProto) -> None:
    if node.op_type == ZEROS and not node.attribute:
        node.attribute.append(onnx.helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            _widen_tensor(attribute.t)
        elif attribute.name in TYPES and attribute.i in FLOATS:
            attribute.i = TensorProto.DOUBLE
        elif node.op_type == "Constant" and attribute.name in NUMBERS:
            values = np.array(onnx.helper.get_attribute_value(attribute), np.float64)
            attribute.CopyFrom(onnx.helper.make_attribute("value", numpy_helper.from_array(values)))


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in FLOATS:
        values = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
