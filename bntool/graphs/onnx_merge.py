"""Merges -> an ONNX graph: each becomes one Conv with tensors of its own; what it makes superfluous goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from bntool.algebra.kernels import Kernel
from bntool.graphs.base import Mergeable, Node
from bntool.graphs.onnx_edit import Edit
from bntool.graphs.onnx_ir import OnnxGraph, origin
from bntool.graphs.onnx_tensors import numpy_dtype


def apply_merges(graph: OnnxGraph, merges: Sequence[Mergeable]) -> list[str]:
    """Rewrites the graph's model in place; each new node's name, or "" for a merge that cannot be written."""
    edit = Edit(graph)
    names = [_apply(edit, merge) if _writable(merge) else "" for merge in merges]
    edit.finish()
    return names


def _writable(merge: Mergeable) -> bool:
    """Convolutions whose input and output are named values of one graph."""
    at, base = origin(merge.at), origin(merge.base)
    return merge.kernel.rank > 0 and at.scope == base.scope and "@" not in merge.at.name + merge.base.name


def _apply(edit: Edit, merge: Mergeable) -> str:
    place, kernel = origin(merge.at), merge.kernel
    weight = _first_weight(merge)
    dtype = _dtype(weight)
    inputs = [merge.base.name.removeprefix(place.scope)]
    inputs.append(_tensor(edit, f"{weight.params['weight'].name}_merged", kernel.weight, dtype))
    if kernel.bias.any():
        inputs.append(_tensor(edit, f"{weight.params['weight'].name}_merged_bias", kernel.bias, dtype))
    nodes = edit.graph.scopes[place.scope].node
    number = next(i for i, node in enumerate(nodes) if node is place.proto)
    made = _conv(kernel, inputs, place.proto.output[0], edit.fresh(f"{weight.where}_merged"))
    nodes[number].output[0] = edit.fresh(f"{made.output[0]}_gone")
    nodes.insert(number + 1, made)
    return made.name


def _first_weight(merge: Mergeable) -> Node:
    return next(n for n in merge.inside if n.kind == "conv")


def _dtype(node: Node) -> np.dtype[Any]:
    const = origin(node).slots["weight"].const
    assert const is not None
    return numpy_dtype(const.data_type)


def _tensor(edit: Edit, name: str, values: NDArray[Any], dtype: np.dtype[Any]) -> str:
    stored = values.astype(dtype)
    return edit.tensor(name, stored.shape, dtype, lambda: stored)


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
