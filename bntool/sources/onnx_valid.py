"""Is a model valid ONNX? Asked of its graph, without the tensors that lie elsewhere."""

from __future__ import annotations

import onnx
from onnx import ModelProto, TensorProto

from bntool.graphs.onnx_tensors import is_external
from bntool.sources.onnx_write import all_tensors


def insist_on_validity(model: ModelProto) -> None:
    """An output need not say its shape: converters leave it out where they do not know it, and runtimes do
    not ask. Raises: onnx.checker.ValidationError.
    """
    bare = ModelProto()
    bare.CopyFrom(model)
    for tensor in all_tensors(bare.graph):
        if is_external(tensor):
            tensor.CopyFrom(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0]))
    for value in bare.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(bare)
