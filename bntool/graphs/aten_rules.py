"""Table: ATen operators, as torch.export writes them -> the torch functions that the table of kinds knows."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from bntool.graphs.aten_schema import Args, argument

#: an operator's arguments, by its schema -> the function and the arguments to call it with; None: left alone
Rewrite = Callable[[Args, fx.Node], tuple[Callable[..., Any], Args] | None]


def _same(function: Callable[..., Any]) -> Rewrite:
    return lambda args, node: (function, args)


def _first(function: Callable[..., Any], count: int) -> Rewrite:
    return lambda args, node: (function, args[:count])


def _batch_norm(args: Args, node: fx.Node) -> tuple[Callable[..., Any], Args]:
    """(One overload has no running statistics.)"""
    if len(args) == 6:
        return F.batch_norm, (args[0], None, None, *args[1:])
    x, weight, bias, mean, var, training, momentum, eps, *_ = args
    return F.batch_norm, (x, mean, var, weight, bias, training, momentum, eps)


def _evaluated_batch_norm(args: Args, node: fx.Node) -> tuple[Callable[..., Any], Args]:
    x, weight, bias, mean, var, momentum, eps = args
    return F.batch_norm, (x, mean, var, weight, bias, False, momentum, eps)


def _instance_norm(args: Args, node: fx.Node) -> tuple[Callable[..., Any], Args]:
    x, weight, bias, mean, var, *rest = args
    return F.instance_norm, (x, mean, var, weight, bias, *rest[:3])


def _native_group_norm(args: Args, node: fx.Node) -> tuple[Callable[..., Any], Args]:
    x, weight, bias, _batch, _channels, _positions, groups, eps = args
    return F.group_norm, (x, groups, weight, bias, eps)


CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _convolution(args: Args, node: fx.Node) -> tuple[Callable[..., Any], Args] | None:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args
    rank = len(stride)
    if transposed:
        return TRANSPOSED[rank], (x, weight, bias, stride, padding, output_padding, groups, dilation)
    return CONVOLUTIONS[rank], (x, weight, bias, stride, padding, dilation, groups)


def _addmm(args: Args, node: fx.Node) -> tuple[Callable[..., Any], Args] | None:
    """`bias + x @ w.T` is a linear layer."""
    bias, x, weight = args[:3]
    inner = untransposed(weight)
    plain = all(factor == 1 for factor in args[3:])
    return None if inner is None or not plain else (F.linear, (x, inner, bias))


def _mm(args: Args, node: fx.Node) -> tuple[Callable[..., Any], Args]:
    inner = untransposed(args[1])
    return (torch.matmul, args) if inner is None else (F.linear, (args[0], inner))


TRANSPOSITIONS = (torch.t, torch.permute, torch.transpose)
BROADCASTS = (torch.reshape, torch.broadcast_to, torch.clone)
COPIES = (torch.clone, torch.detach)


def untransposed(weight: Any) -> fx.Node | None:
    """The parameter of which this is the transpose, if it is one."""
    if not isinstance(weight, fx.Node) or weight.op != "call_function" or not weight.args:
        return None
    inner = weight.args[0]
    if weight.target not in TRANSPOSITIONS or not isinstance(inner, fx.Node) or inner.op != "get_attr":
        return None
    order = weight.args[1:]
    return inner if order in ((), ([1, 0],), (0, 1), (1, 0)) else None


def _bmm(args: Args, node: fx.Node) -> tuple[Callable[..., Any], Args]:
    """A batched product with one parameter for the whole batch, as decompositions write a linear layer."""
    weight = args[1]
    while isinstance(weight, fx.Node) and weight.target in BROADCASTS and _same_rows(weight, weight.args[0]):
        weight = weight.args[0]
    inner = untransposed(weight)
    return (torch.matmul, args) if inner is None else (F.linear, (args[0], inner))


def _same_rows(a: fx.Node, b: Any) -> bool:
    first, second = _noted_sizes(a), _noted_sizes(b)
    return first is not None and second is not None and first[-2:] == second[-2:]


def _noted_sizes(value: Any) -> tuple[Any, ...] | None:
    """The sizes that the exporter noted, as numbers and expressions.

    (Of two open sizes torch would note, for every later call, whether they are equal here.)
    """
    noted = getattr(getattr(value, "meta", {}).get("val"), "shape", None)
    return None if noted is None else tuple(n if isinstance(n, int) else n.node.expr for n in noted)


def _expand(args: Args, node: fx.Node) -> tuple[Callable[..., Any], Args]:
    """To the shape it has: a copy."""
    before, after = _noted_sizes(args[0]), _noted_sizes(node)
    same = before is not None and before == after
    return (torch.clone, args[:1]) if same else (torch.broadcast_to, args[:2])


def _slice(args: Args, node: fx.Node) -> tuple[Callable[..., Any], Args]:
    x, dim, start, end, step = args
    cut, whole = slice(start, end, step), slice(None)
    index: tuple[Any, ...] = (*(whole,) * dim, cut) if dim >= 0 else (..., cut, *(whole,) * (-dim - 1))
    return operator.getitem, (x, index)


def _index(args: Args, node: fx.Node) -> tuple[Callable[..., Any], Args]:
    """`x[:, index]`: None stands for a dimension that is taken whole."""
    x, indices = args
    return operator.getitem, (x, tuple(slice(None) if i is None else stored(i) for i in indices))


def _index_select(args: Args, node: fx.Node) -> tuple[Callable[..., Any], Args]:
    x, dim, index = args
    return torch.index_select, (x, dim, stored(index))


def stored(value: Any) -> Any:
    """The tensor of the program of which a value is a copy, made for this one use; else the value itself."""
    copies = isinstance(value, fx.Node) and value.target in COPIES and len(value.users) == 1
    return stored(value.args[0]) if copies else value


def _reversed_sub(args: Args, node: fx.Node) -> tuple[Callable[..., Any], Args] | None:
    x, other, *alpha = args
    plain = alpha in ([], [1]) and "alpha" not in node.kwargs
    return (operator.sub, (other, x)) if plain else None


def _softmax(args: Args, node: fx.Node) -> tuple[Callable[..., Any], Args]:
    return torch.softmax, args[:2]


def _native_dropout(args: Args, node: fx.Node) -> tuple[Callable[..., Any], Args]:
    return F.dropout, args[:3]


def _upsample(mode: str) -> Rewrite:
    def rewrite(args: Args, node: fx.Node) -> tuple[Callable[..., Any], Args] | None:
        size, scale = argument(node, "output_size"), argument(node, "scale_factors")
        if size is None and scale is None:
            return None
        corners = argument(node, "align_corners")
        return F.interpolate, (args[0], size, scale if size is None else None, mode, corners)

    return rewrite


def _pool(function: Callable[..., Any]) -> Rewrite:
    """A stride that is left out, an empty list, is the kernel's size."""
    return lambda args, node: (function, (*args[:2], args[2] or args[1], *args[3:]))


def _cast(args: Args, node: fx.Node) -> tuple[Callable[..., Any], Args] | None:
    dtype = argument(node, "dtype")
    return None if dtype is None else (torch.Tensor.to, (args[0], dtype))


REWRITES: dict[str, Rewrite] = {
    **{f"conv{r}d": _same(CONVOLUTIONS[r]) for r in (1, 2, 3)},
    **{f"conv_transpose{r}d": _same(TRANSPOSED[r]) for r in (1, 2, 3)},
    "convolution": _convolution,
    "linear": _same(F.linear),
    "addmm": _addmm,
    "mm": _mm,
    "bmm": _bmm,
    "matmul": _same(torch.matmul),
    "batch_norm": _batch_norm,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _evaluated_batch_norm,
    "instance_norm": _instance_norm,
    "group_norm": _first(F.group_norm, 5),
    "layer_norm": _first(F.layer_norm, 5),
    "native_group_norm": _native_group_norm,
    "native_layer_norm": _first(F.layer_norm, 5),
    **{f"max_pool{r}d": _pool(getattr(F, f"max_pool{r}d")) for r in (1, 2, 3)},
    **{f"avg_pool{r}d": _pool(getattr(F, f"avg_pool{r}d")) for r in (1, 2, 3)},
    **{f"adaptive_avg_pool{r}d": _same(getattr(F, f"adaptive_avg_pool{r}d")) for r in (1, 2, 3)},
    **{f"_adaptive_avg_pool{r}d": _same(getattr(F, f"adaptive_avg_pool{r}d")) for r in (2, 3)},
    **{f"max_pool{r}d_with_indices": _pool(getattr(F, f"max_pool{r}d")) for r in (2, 3)},
    "mean": _same(torch.mean),
    "sum": _same(torch.sum),
    "amax": _same(torch.amax),
    "relu": _same(F.relu),
    "relu_": _same(torch.relu_),
    "leaky_relu": _same(F.leaky_relu),
    "prelu": _same(torch.prelu),
    "clamp": _same(torch.clamp),
    "clamp_min": _same(torch.clamp_min),
    "dropout": _same(F.dropout),
    "feature_dropout": _same(F.dropout2d),
    "native_dropout": _native_dropout,
    "softmax": _softmax,
    "_softmax": _softmax,
    "scaled_dot_product_attention": _same(F.scaled_dot_product_attention),
    "cat": _same(torch.cat),
    "stack": _same(torch.stack),
    "add": _same(torch.add),
    "sub": _same(torch.sub),
    "mul": _same(torch.mul),
    "div": _same(torch.div),
    "neg": _same(torch.neg),
    **{f"{name}_": _same(getattr(torch.Tensor, f"{name}_")) for name in ("add", "sub", "mul", "div")},
    "view": _same(torch.reshape),
    "_unsafe_view": _same(torch.reshape),
    "reshape": _same(torch.reshape),
    **{f"{name}_as": _same(getattr(torch.Tensor, f"{name}_as")) for name in ("reshape", "view", "expand")},
    "expand": _expand,
    "slice": _slice,
    "clone": _first(torch.clone, 1),
    "contiguous": _first(torch.clone, 1),
    "alias": _first(torch.clone, 1),
    "detach": _first(torch.detach, 1),
    "lift_fresh_copy": _first(torch.clone, 1),
    "_to_copy": _cast,
    "to": _cast,
    "pad": _same(F.pad),
    "constant_pad_nd": lambda args, node: (F.pad, (args[0], args[1], "constant", *args[2:])),
    **{f"upsample_nearest{r}d": _upsample("nearest") for r in (1, 2, 3)},
    "upsample_linear1d": _upsample("linear"),
    "upsample_bilinear2d": _upsample("bilinear"),
    "upsample_bicubic2d": _upsample("bicubic"),
    "upsample_trilinear3d": _upsample("trilinear"),
    "mT": lambda args, node: (torch.transpose, (args[0], -2, -1)),
    "index": _index,
    "index_select": _index_select,
    "rsub": _reversed_sub,
    **{
        name: _same(getattr(torch, name))
        for name in (
            *("permute", "transpose", "swapaxes", "swapdims", "t", "movedim", "moveaxis", "rot90", "adjoint"),
            *("flatten", "unflatten", "ravel", "squeeze", "unsqueeze", "select", "narrow", "diagonal"),
            *("split", "split_with_sizes", "chunk", "unbind", "roll", "flip", "tile", "repeat_interleave"),
            *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "broadcast_to"),
            *("multiply", "subtract", "divide", "true_divide", "negative", "concat", "concatenate", "clip"),
        )
    },
    **{name: _same(getattr(torch.Tensor, name)) for name in ("repeat", "unfold", "neg_")},
}
#: operators that give a tuple of which only the first element is the value
TUPLES = frozenset(
    {
        *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
        *("native_group_norm", "native_layer_norm"),
        *("max_pool2d_with_indices", "max_pool3d_with_indices", "native_dropout"),
    }
)
#: keywords with which an operator is still what the table says
KNOWN = frozenset(
    ("alpha", "dtype", "layout", "device", "pin_memory", "non_blocking", "memory_format", "copy", "scale")
)
