"""Merges -> an ONNX graph: each becomes one layer with tensors of its own; what it makes superfluous goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from bntool.algebra.kernels import Kernel, without_padding
from bntool.graphs.base import Mergeable, Node
from bntool.graphs.merged import merged_name, weighted
from bntool.graphs.onnx_edit import Edit
from bntool.graphs.onnx_ir import OnnxGraph, opset_of, origin
from bntool.graphs.onnx_tensors import numpy_dtype

#: what convolutions of torch's call a padding -> what ONNX does
PADS = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def apply_merges(graph: OnnxGraph, merges: Sequence[Mergeable]) -> list[str]:
    """Rewrites the graph's model in place; each new layer's name, or "" where it cannot be written."""
    edit = Edit(graph)
    names = [_apply(edit, merge) if _writable(merge) else "" for merge in merges]
    edit.finish()
    return names


def _writable(merge: Mergeable) -> bool:
    """Whether the layer's input and output are named values of one graph."""
    return origin(merge.at).scope == origin(merge.base).scope and all(map(_is_named, (merge.at, merge.base)))


def _is_named(value: Node) -> bool:
    """Not a part of what a node does."""
    return value.kind == "input" or value.name in origin(value).proto.output


def _apply(edit: Edit, merge: Mergeable) -> str:
    place, name = origin(merge.at), edit.fresh(merged_name(merge))
    x, y = merge.base.name, place.proto.output[0]
    made = _nodes(edit, merge, name, x, y)
    nodes = edit.graph.scopes[place.scope].node
    number = next(i for i, node in enumerate(nodes) if node is place.proto)
    nodes[number].output[0] = edit.fresh(f"{y}_gone")
    for offset, node in enumerate(made, 1):
        nodes.insert(number + offset, node)
    return name


def _nodes(edit: Edit, merge: Mergeable, name: str, x: str, y: str) -> list[NodeProto]:
    kernel, layer = merge.kernel, weighted(merge)
    const = origin(layer).slots["weight"].const
    assert const is not None
    dtype = numpy_dtype(const.data_type)

    def tensor(leaf: str, values: NDArray[Any]) -> str:
        stored = values.astype(dtype)
        return edit.tensor(f"{name}.{leaf}", stored.shape, dtype, lambda: stored)

    bias = [tensor("bias", kernel.bias)] if kernel.bias.any() else []
    if kernel.rank:
        pads = [] if kernel.mode == "zeros" else [_pad(edit, kernel, x, name)]
        if pads:
            x, kernel = pads[0].output[0], without_padding(kernel)
        return [*pads, _conv(kernel, [x, tensor("weight", kernel.weight), *bias], y, name)]
    if origin(layer).proto.op_type == "Gemm":
        if not bias and opset_of(edit.graph.model) < 11:  # when it had to have one
            bias = [tensor("bias", kernel.bias)]
        return [helper.make_node("Gemm", [x, tensor("weight", kernel.weight), *bias], [y], name, transB=1)]
    weight = tensor("weight", np.ascontiguousarray(kernel.weight.T))
    inner = edit.fresh(f"{y}_unshifted") if bias else y
    product = helper.make_node("MatMul", [x, weight], [inner], name)
    return [product, *(helper.make_node("Add", [inner, b], [y], edit.fresh(f"{name}_bias")) for b in bias)]


def _pad(edit: Edit, kernel: Kernel, x: str, name: str) -> NodeProto:
    """What pads with values of its input, which no convolution of ONNX's does."""
    made, around, mode = edit.fresh(f"{name}_pad"), [0, 0, *kernel.padding] * 2, PADS[kernel.mode]
    if opset_of(edit.graph.model) < 11:  # which has the widths as an attribute
        return helper.make_node("Pad", [x], [made], made, mode=mode, pads=around)
    widths = edit.tensor(f"{name}.pads", (len(around),), np.dtype(np.int64), lambda: np.array(around))
    return helper.make_node("Pad", [x, widths], [made], made, mode=mode)


def _conv(kernel: Kernel, inputs: list[str], output: str, name: str) -> NodeProto:
    return helper.make_node(
        "Conv",
        inputs,
        [output],
        name=name,
        kernel_shape=kernel.taps,
        strides=kernel.stride,
        pads=(*kernel.padding, *kernel.padding),
        dilations=kernel.dilation,
        group=kernel.groups,
    )
