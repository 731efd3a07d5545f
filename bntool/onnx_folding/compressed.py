"""A weight that is stored in fewer bytes than it has, times a scale: the map goes into that scale.

Exporters write weights of eight bits as Mul(Cast(weight), scale): multiplied out, the file would grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from bntool.algebra.affine import Array
from bntool.graphs.onnx_constants import Const
from bntool.graphs.onnx_edit import Edit
from bntool.graphs.onnx_op import Slot
from bntool.graphs.onnx_scopes import Scope
from bntool.graphs.onnx_tensors import numpy_dtype
from bntool.rewriting import OutOfRange, Rewrite


def scaled(edit: Edit, rewrite: Rewrite, slot: Slot, scope: Scope) -> tuple[str, int, int] | None:
    """The weight times `rewrite.scale`, made by a node of its own; None where there is no such way.

    Returns: its name, and how many more values and bytes its scale has. Raises: OutOfRange.
    """
    const, factor = slot.const, rewrite.scale
    if const is None or factor is None or rewrite.shift is not None or not const.is_compressed:
        return None
    nodes = edit.graph.scopes[scope].node
    name = slot.proto.input[slot.port]
    place = next((i for i, node in enumerate(nodes) if name in node.output), None)
    if place is None or nodes[place].op_type != "Mul":
        return None
    consts = edit.graph.consts[scope]
    found = _scale_of([consts.get(n) for n in nodes[place].input], factor, slot)
    if found is None:
        return None
    port, values = found
    if not np.isfinite(values).all():
        raise OutOfRange(rewrite, f"{name} would leave the range of {values.dtype.name}")
    scale = edit.tensor(f"{nodes[place].input[port]}_folded", values.shape, values.dtype, lambda: values)
    made = edit.fresh(f"{name}_folded")
    nodes.insert(place + 1, helper.make_node("Mul", [nodes[place].input[1 - port], scale], [made]))
    more = values.size - consts[nodes[place].input[port]].size
    return made, more, more * values.dtype.itemsize


def _scale_of(operands: Sequence[Const | None], factor: Array, slot: Slot) -> tuple[int, NDArray[Any]] | None:
    """Which input of the Mul is the scale, and what it becomes: no larger than it was, or than the map."""
    assert slot.const is not None
    for port, const in enumerate(operands):
        if const is None or const.is_compressed:
            continue
        size = int(np.prod(np.broadcast_shapes(const.shape, factor.shape), dtype=np.int64))
        if size <= max(const.size, factor.size) < slot.const.size:
            with np.errstate(over="ignore"):
                values = const.fetch().astype(np.float64) * slot.times * factor
                return port, values.astype(numpy_dtype(const.data_type))
    return None
