"""A plan carried out on an ONNX model: new weights where a map went in, folded norms taken out."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto

from bntool.algebra.affine import Array
from bntool.graphs.base import Node
from bntool.graphs.onnx_edit import Edit
from bntool.graphs.onnx_ir import OnnxGraph, opset_of, origin
from bntool.graphs.onnx_op import Slot
from bntool.graphs.onnx_scopes import Scope
from bntool.graphs.onnx_tensors import numpy_dtype
from bntool.onnx_folding.compressed import scaled
from bntool.plan import Plan
from bntool.report.savings import Grown, size_of
from bntool.rewriting import OutOfRange, Rewrite, rewrites

#: elements worked on at a time, so that their float64 copy stays small
PIECE = 1 << 16


def carry_out(graph: OnnxGraph, plan: Plan) -> Grown:
    """Edit the graph's model in place. New tensors are computed when they are read or written.

    Returns: how much more the layers hold than before: a new bias, a copy of a weight that others read.
    Raises: OutOfRange, then or now.
    """
    edit, made, growth = Edit(graph), dict[tuple[Any, ...], tuple[str, Made]](), Growth.of(graph, plan)
    for rewrite in rewrites(plan.changes.values()):
        growth.count(rewrite, _write(edit, rewrite, made))
    for step in plan.steps:
        for call in step.norm.calls:
            edit.bypass(origin(call).scope, origin(call).proto)
    edit.finish()
    return growth.grown


@dataclass
class Growth:
    """Counts the values and bytes that layers gain. `others` are stored tensors that must stay."""

    others: set[Hashable]
    grown: Grown = field(default_factory=dict)

    @classmethod
    def of(cls, graph: OnnxGraph, plan: Plan) -> Growth:
        gone = plan.folded_owners | plan.changes.keys()
        return cls({p.stored for n in graph.nodes if n.owner not in gone for p in n.params.values()})

    def count(self, rewrite: Rewrite, made: Made) -> None:
        """The parameter's own tensor goes where a new one is in its place and nothing else reads it."""
        param, (values, size) = rewrite.param, made.more
        like = rewrite.node.params["weight"] if param is None else param
        each = size_of(rewrite.value.shape if rewrite.value is not None else like.shape, like)
        values, size = values + made.tensors * each[0], size + made.tensors * each[1]
        if param is not None and made.replaces and param.stored not in self.others:
            self.others.add(param.stored)  # goes once
            const = origin(rewrite.node).slots[rewrite.name].const
            values, size = values - each[0], size - (each[1] if const is None else const.stored_bytes)
        before = self.grown.get(rewrite.node.owner, (0, 0))
        self.grown[rewrite.node.owner] = (before[0] + values, before[1] + size)


@dataclass(frozen=True)
class Made:
    """How many new tensors a rewrite took, and the (values, bytes) that one in use has more than before.

    `replaces`: whether the parameter's own tensor is not needed any more.
    """

    tensors: int = 0
    more: tuple[int, int] = (0, 0)
    replaces: bool = True


def _write(edit: Edit, rewrite: Rewrite, made: dict[tuple[Any, ...], tuple[str, Made]]) -> Made:
    place = origin(rewrite.node)
    slot, scope = place.slots[rewrite.name], place.scope
    if (
        rewrite.name == "bias"
        and rewrite.value is not None
        and not rewrite.value.any()
        and _may_drop(edit, slot)
    ):
        edit.drop_bias(scope, slot)
        return Made()
    key = _identity(rewrite, slot, _dtype(rewrite.node, slot))
    name, done = made[key] if key in made else _anew(edit, rewrite, slot, scope)
    made[key] = name, Made(replaces=done.replaces)
    if slot.port < 0:
        edit.add_behind(scope, slot.proto, name)
    else:
        edit.put(slot, name)
    if slot.proto.op_type == "Gemm":
        _set_factor(slot.proto, "alpha" if rewrite.name == "weight" else "beta")
    return done


def _anew(edit: Edit, rewrite: Rewrite, slot: Slot, scope: Scope) -> tuple[str, Made]:
    way = scaled(edit, rewrite, slot, scope)
    if way is None:
        return _new_tensor(edit, rewrite, slot), Made(1)
    name, *more = way
    return name, Made(more=(more[0], more[1]), replaces=False)


def _may_drop(edit: Edit, slot: Slot) -> bool:
    """A norm has to have its bias; before opset 11 a Gemm had to have its C."""
    if slot.proto.op_type == "BatchNormalization":
        return False
    return slot.port >= 0 and (slot.proto.op_type != "Gemm" or opset_of(edit.graph.model) >= 11)


def _identity(rewrite: Rewrite, slot: Slot, dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """What makes two new tensors one: the calls of one layer share what they become.

    The same scale along rows and along columns is told apart by its shape: tied layers read one weight both
    ways. A bias that was not there has no source to say its dtype.
    """
    arrays = (rewrite.scale, rewrite.shift, rewrite.value)
    written = tuple(None if a is None else (a.shape, blake2b(a.tobytes()).digest()) for a in arrays)
    source = slot.const.source if slot.const is not None else None
    return (source, slot.times, rewrite.name, dtype.name, *written)


def _new_tensor(edit: Edit, rewrite: Rewrite, slot: Slot) -> str:
    node = rewrite.node
    param = rewrite.param or node.params["weight"]
    base = param.name if rewrite.param is not None else _bias_name(param.name)
    dtype = _dtype(node, slot)
    if rewrite.value is not None:
        shape = rewrite.value.shape
    else:
        assert slot.const is not None
        shape = slot.const.shape
    return edit.tensor(f"{base}_folded", shape, dtype, lambda: _values(rewrite, slot, dtype))


def _dtype(node: Node, slot: Slot) -> np.dtype[Any]:
    """Of the tensor that was there, or of the weight where a bias comes new."""
    like = slot.const or origin(node).slots["weight"].const
    assert like is not None
    return numpy_dtype(like.data_type)


def _bias_name(weight: str) -> str:
    return f"{weight[: -len('.weight')]}.bias" if weight.endswith(".weight") else f"{weight}_bias"


def _set_factor(proto: NodeProto, name: str) -> None:
    """The new tensor holds what the Gemm's alpha or beta multiplied with."""
    for place, attribute in enumerate(proto.attribute):
        if attribute.name == name:
            del proto.attribute[place]
            break
    proto.attribute.append(AttributeProto(name=name, type=AttributeProto.FLOAT, f=1.0))


def _values(rewrite: Rewrite, slot: Slot, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The new tensor, in its own dtype, computed in float64 a piece at a time. Raises: OutOfRange."""
    if rewrite.value is not None:
        with np.errstate(over="ignore"):
            new = rewrite.value.astype(dtype)
    else:
        assert slot.const is not None
        new = _multiplied(slot.const.fetch(), slot.times, rewrite.scale, rewrite.shift, dtype)
    if not np.isfinite(new).all():
        raise OutOfRange(rewrite, f"{_label(rewrite)} would leave the range of {dtype.name}")
    return new


def _multiplied(
    old: NDArray[Any], times: float, scale: Array | None, shift: Array | None, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """`old * times * scale + shift`."""
    if old.ndim == 0:
        return _multiplied(old.reshape(1), times, scale, shift, dtype).reshape(())
    new = np.empty(old.shape, dtype)
    rows = max(1, PIECE // max(1, old[:1].size))
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(old), rows):
            here = slice(start, start + rows)
            piece = old[here].astype(np.float64)
            if times != 1:
                piece *= times
            if scale is not None:
                piece *= _rows(scale, old.ndim, here)
            if shift is not None:
                piece += _rows(shift, old.ndim, here)
            new[here] = piece
    return new


def _rows(values: Array, rank: int, here: slice) -> Array:
    laid = values.reshape((1,) * (rank - values.ndim) + values.shape)
    return laid[here] if len(laid) > 1 else laid


def _label(rewrite: Rewrite) -> str:
    return rewrite.param.name if rewrite.param is not None else _at(rewrite.node)


def _at(node: Node) -> str:
    return f"the new bias of {node.where or node.name}"
