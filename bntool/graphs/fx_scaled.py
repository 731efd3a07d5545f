"""Weights that a forward multiplies before a layer gets them: by a mask, a gain, a constant.

A fold only ever multiplies a weight, per channel: what it would do to the product it can do to the tensor
that is stored. (What is computed in another way, as a standardised weight, would undo it.)
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import fx, nn

from bntool.algebra.affine import Array
from bntool.graphs.aten_schema import aten_name
from bntool.graphs.base import Param
from bntool.graphs.fx_calls import changes_in_place, function_name, names, param_of, to_float64
from bntool.graphs.fx_overwritten import is_written
from bntool.graphs.fx_sizes import Sizes
from bntool.graphs.fx_upstream import is_plain

PRODUCTS = names("mul multiply div divide truediv true_divide")
LAYERS = names("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear")
#: what a factor may be computed by: functions that give the same at every call
STEADY = PRODUCTS | names(
    "abs add clone contiguous detach double exp expand expand_as flatten float ge getitem gt half le lt neg "
    "permute pow relu reshape round rsqrt rsub select sigmoid sign slice softmax softplus sqrt squeeze sub "
    "tanh to to_copy transpose type_as unsqueeze view"
)


def weight_path(layer: fx.Node, sizes: Sizes) -> list[fx.Node]:
    """The products that make a layer's weight, the last one first, and the stored tensor behind them; empty
    where it is no such weight.
    """
    if function_name(layer) not in LAYERS:
        return []
    node: Any = layer.args[1] if len(layer.args) > 1 else layer.kwargs.get("weight")
    path: list[fx.Node] = []
    while isinstance(node, fx.Node) and node.op != "get_attr":
        path.append(node)
        node = _multiplied(node, sizes)
    if not path or node is None or node.target in sizes.constants or not _is_steady(node, sizes):
        return []
    same = sizes.value(path[0]).dtype == sizes.tensor(str(node.target)).dtype
    return [*path, node] if same else []


def _multiplied(node: fx.Node, sizes: Sizes) -> fx.Node | None:
    """What a product is of, element by element, if all else in it stays as it is."""
    name, readers = function_name(node), [u for u in node.users if not is_plain(u)]
    if name not in PRODUCTS or changes_in_place(node) or node.kwargs or len(readers) != 1:
        return None
    if not sizes.is_constant(node) or not isinstance(sizes.value(node), torch.Tensor):
        return None
    operands = [a for a in node.args if isinstance(a, fx.Node)]
    may_be = operands if name in ("mul", "multiply") else operands[:1]
    full = [a for a in may_be if a in node.args[:2] and _shape(a, sizes) == _shape(node, sizes)]
    main = min(full, key=lambda a: _rank(a, sizes), default=None)
    return main if all(_is_steady(a, sizes) for a in operands if a is not main) else None


def _shape(node: fx.Node, sizes: Sizes) -> Any:
    return getattr(sizes.value(node), "shape", None)


def _rank(node: fx.Node, sizes: Sizes) -> int:
    """Of two tensors the weight is the one that is learned, or that one is a factor of."""
    if node.op == "get_attr":
        return 0 if isinstance(sizes.tensor(str(node.target)), nn.Parameter) else 2
    return 1 if function_name(node) in PRODUCTS else 3


def _is_steady(node: fx.Node, sizes: Sizes) -> bool:
    """Whether a value is the same at every call."""
    if node.op == "get_attr":
        return not is_written(node, sizes)
    if is_plain(node):
        return True
    name = aten_name(node).strip("_") or function_name(node)
    inputs = node.all_input_nodes
    known = name in STEADY and not changes_in_place(node) and bool(inputs)
    return known and all(_is_steady(n, sizes) for n in inputs)


def factors(path: list[fx.Node]) -> list[fx.Node]:
    """The stored tensors with which the one at the end of a path is multiplied."""
    found = [n for node in path[:-1] for n in node.all_input_nodes if n not in path]
    return [n for n in found if n.op == "get_attr"]


def scaled_param(path: list[fx.Node], sizes: Sizes) -> Param:
    """The stored tensor, written to as what it is, and read as the weight that it becomes."""
    top, name = path[0], str(path[-1].target)
    param = param_of(sizes.tensor(name), name)
    param.source, param.part = param.stored, (param.part, _words(top))
    param.fetch, param.is_product = partial(_fetched, top, sizes), True
    return param


def _fetched(node: fx.Node, sizes: Sizes) -> Array:
    with torch.no_grad():
        return to_float64(_computed(node, sizes))


def _computed(node: fx.Node, sizes: Sizes) -> Any:
    if node.op == "get_attr":
        return sizes.tensor(str(node.target))
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _computed(n, sizes))
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _words(value: Any) -> str:
    """Equal for what computes the same."""
    if not isinstance(value, fx.Node):
        return repr(value)
    inside = [_words(a) for a in (*value.args, *value.kwargs.values())]
    return f"{function_name(value) or value.target}({', '.join(inside)})"
