"""Ops without layers of their own (pools, sums, products, casts, ...) in the neutral vocabulary."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from bntool.graphs.fx_calls import Call, Spec, function_name
from bntool.graphs.fx_layers import NO_BIAS, Build, nonzero
from bntool.graphs.fx_sizes import UNKNOWN
from bntool.graphs.windows import window


def one(kind: str, **attrs: Any) -> Build:
    return lambda call: Spec(kind, (call.get(0, "input"),), dict(attrs))


def max_pool(rank: int) -> Build:
    return one("max_pool", dims=tuple(range(-rank, 0)))


def avg_pool(rank: int) -> Build:
    def build(call: Call) -> Spec:
        not_counted = call.number(5, "count_include_pad", True) is False
        counted = nonzero(call.number(3, "padding", 0)) and not not_counted
        # (a window that ceil_mode lets hang over counts no more padding than is given: its mean stays a mean)
        divisor = call.number(6, "divisor_override")
        attrs = {"dims": tuple(range(-rank, 0)), "counts_padding": counted or divisor is not None}
        attrs |= _pool_window(call, rank) if divisor is None else {}
        return Spec("avg_pool", (call.get(0, "input"),), attrs)

    return build


def _pool_window(call: Call, rank: int) -> dict[str, Any]:
    taps = call.fixed(call.get(1, "kernel_size"))
    taps = (taps,) * rank if isinstance(taps, int) else taps
    if taps is UNKNOWN or call.number(4, "ceil_mode", False) is not False:
        return {}
    return {
        "kernel_size": tuple(taps),
        **window(taps, call.number(2, "stride", None), call.number(3, "padding", 0)),
    }


def _reduced(call: Call, name: str) -> tuple[tuple[int, ...], bool] | None:
    dims, rank = call.number(1, name, None), call.rank(call.get(0, "input"))
    if dims is None:
        dims = None if rank is None else tuple(range(-rank, 0))
    dims, keepdim = (dims,) if isinstance(dims, int) else dims, call.number(2, "keepdim", False)
    if dims is None or UNKNOWN in (dims, keepdim) or not all(isinstance(d, int) for d in dims):
        return None
    if any(d >= 0 for d in dims) and rank is None:
        return None
    return tuple(d - (rank or 0) if d >= 0 else d for d in dims), bool(keepdim)


def summed_parts(call: Call) -> tuple[fx.Node, ...]:
    """What a sum, or mean, over the dimension along which values were stacked adds up; () if it is none."""
    stack = call.get(0, "input")
    if not isinstance(stack, fx.Node) or function_name(stack) != "stack":
        return ()
    stacked = Call(stack, call.root, call.sizes, call.plain)
    parts, dim, found = stacked.get(0, "tensors"), stacked.number(1, "dim", 0), _reduced(call, "dim")
    rank, kept = call.rank(stack), call.node.kwargs.keys() - {"input", "dim", "axis"}
    listed = isinstance(parts, (tuple, list))
    if not listed or not isinstance(dim, int) or found is None or rank is None or kept or found[1]:
        return ()
    along = found[0] == (dim - rank if dim >= 0 else dim,)
    return tuple(parts) if along and all(isinstance(part, fx.Node) for part in parts) else ()


def mean(call: Call) -> Spec | None:
    found = _reduced(call, "dim")
    return (
        None
        if found is None
        else Spec("mean", (call.get(0, "input"),), {"dims": found[0], "keepdim": found[1]})
    )


def amax(call: Call) -> Spec | None:
    found = _reduced(call, "dim")
    if found is None or not found[1]:
        return None
    return Spec("max_pool", (call.get(0, "input"),), {"dims": found[0]})


def interpolate(call: Call) -> Spec | None:
    rank = call.rank(call.get(0, "input"))
    mode = call.number(3, "mode", "nearest")
    spatial = {"linear": 1, "bilinear": 2, "bicubic": 2, "trilinear": 3}.get(mode)
    if spatial is None:
        if rank is None:
            return None
        spatial = rank - 2
    return Spec("upsample", (call.get(0, "input"),), {"dims": tuple(range(-spatial, 0))})


def pad(call: Call) -> Spec | None:
    flat, mode = call.number(1, "pad"), call.number(2, "mode", "constant")
    value = call.number(3, "value", None)
    if UNKNOWN in (flat, mode, value):
        return None
    widths = tuple((flat[i], flat[i + 1]) for i in range(len(flat) - 2, -1, -2))
    return Spec("pad", (call.get(0, "input"),), {"widths": widths, "mode": mode, "value": value or 0.0})


def binary(kind: str) -> Build:
    def build(call: Call) -> Spec | None:
        a, b = call.get(0, "input"), call.get(1, "other")
        alpha = call.fixed(call.get(2, "alpha", 1))
        if not isinstance(alpha, (int, float)) or call.node.kwargs.get("rounding_mode") is not None:
            return None
        x, y = call.fixed(a), call.fixed(b)
        if alpha != 1:
            return None if isinstance(x, (int, float)) else _with_factor(kind, a, b, alpha, y)
        if isinstance(y, (int, float)):
            return _with_literal(kind, a, float(y), right=True)
        if isinstance(x, (int, float)):
            return _with_literal(kind, b, float(x), right=False)
        return Spec(kind, (a, b))

    return build


def _with_factor(kind: str, a: Any, b: Any, alpha: float, known: Any) -> Spec | None:
    """`a + alpha * b`, where `known` is what is known of b."""
    if isinstance(known, (int, float)):
        return _with_literal(kind, a, float(alpha * known), right=True)
    factor = -alpha if kind == "sub" else alpha
    if kind not in ("add", "sub") or not math.isfinite(factor):
        return None
    return Spec("combination", (a, b), {"factors": (1.0, float(factor)), "shift": 0.0})


def _with_literal(kind: str, x: Any, c: float, *, right: bool) -> Spec | None:
    pairs = {
        ("add", True): (1.0, c),
        ("add", False): (1.0, c),
        ("sub", True): (1.0, -c),
        ("sub", False): (-1.0, c),
        ("mul", True): (c, 0.0),
        ("mul", False): (c, 0.0),
        ("div", True): (1 / c if c else 0.0, 0.0),
    }
    if (kind, right) not in pairs or not math.isfinite(c) or (kind == "div" and c == 0):
        return None
    a, b = pairs[kind, right]
    return Spec("scalar", (x,), {"a": a, "b": b})


def negative(call: Call) -> Spec:
    return Spec("scalar", (call.get(0, "input"),), {"a": -1.0, "b": 0.0})


def matmul(call: Call) -> Spec | None:
    a, b = call.get(0, "input"), call.get(1, "other", call.node.kwargs.get("mat2"))
    for x, w, side in ((a, b, "right"), (b, a, "left")):
        param = call.param(w)
        if param is not None and len(param.shape) == 2 and (side == "right" or (call.rank(x) or 0) > 1):
            return Spec("matmul_const", (x,), {"side": side, "no_bias": NO_BIAS}, {"weight": param})
    if (call.rank(a) or 0) < 2 or (call.rank(b) or 0) < 2:
        return None
    return Spec("matmul", (a, b), {"rows_sum_to_one": rows_sum_to_one(a, call)})


def rows_sum_to_one(value: Any, call: Call) -> bool:
    """Whether a traced value is a softmax over its last dimension, seen through what keeps its rows."""
    while isinstance(value, fx.Node):
        name = function_name(value)
        here = Call(value, call.root, call.sizes, call.plain)
        if name == "softmax":
            dim, rank = here.number(1, "dim", None), here.rank(value)
            return dim == -1 or (rank is not None and dim == rank - 1)
        if (
            name in ("contiguous", "clone", "type_as")
            or (name == "dropout" and _evaluated(here))
            or (name in ("reshape", "view", "unsqueeze", "flatten") and _same_length(here))
        ):
            value = here.get(0, "input")
        else:
            return False
    return False


def _same_length(call: Call) -> bool:
    """Whether the last dimension stays as long: then a reshape leaves every row what it is."""
    before, after = call.shape(call.get(0, "input")), call.shape(call.node)
    return bool(before) and bool(after) and before[-1] == after[-1]  # type: ignore[index]  # just looked


def _evaluated(call: Call) -> bool:
    return call.number(2, "training", True) is False or call.number(1, "p", 0.5) == 0


def dropout(call: Call) -> Spec | None:
    return Spec("identity", (call.get(0, "input"),)) if _evaluated(call) else None


def cast(call: Call) -> Spec | None:
    """A cast passes maps where it only widens: then what it is given is kept exactly.

    (Not where it is an argument of the model's that says to what.)
    """
    others = [call.sizes.value(n) for n in call.node.all_input_nodes[1:] if n not in call.plain]
    if not all(isinstance(other, torch.Tensor) for other in others):
        return None
    before, after = call.sizes.value(call.node.all_input_nodes[0]), call.sizes.value(call.node)
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return None
    widens = torch.promote_types(before.dtype, after.dtype) == after.dtype and before.dtype.is_floating_point
    return Spec("identity", (call.node.args[0],)) if widens else None


def attention(call: Call) -> Spec | None:
    names = ("query", "key", "value")
    if call.number(4, "dropout_p", 0.0) != 0:
        return None
    mask = call.get(3, "attn_mask")
    inputs = tuple(call.get(i, name) for i, name in enumerate(names))
    attrs = {"rows_sum_to_one": mask is None or _never_hides_a_row(mask, call)}
    return Spec("sdpa", inputs + ((mask,) if mask is not None else ()), attrs)


def _never_hides_a_row(mask: Any, call: Call) -> bool:
    """Where a mask leaves nothing of a row the attention gives zeros: only a finite parameter never does."""
    if not isinstance(mask, fx.Node) or not call.sizes.is_constant(mask):
        return False
    value = call.sizes.value(mask)
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def concat(call: Call) -> Spec | None:
    parts, dim = call.get(0, "tensors"), call.number(1, "dim", call.node.kwargs.get("axis", 0))
    if not isinstance(parts, (tuple, list)) or not isinstance(dim, int):
        return None
    if dim >= 0:
        rank = call.rank(call.node)
        if rank is None:
            return None
        dim -= rank
    filled = [p for p in parts if dim == -1 or call.shape(p) != (0,)]  # torch lets those be of any rank
    return Spec("concat", tuple(filled), {"dim": dim})


def clamp(call: Call) -> Spec | None:
    if call.number(1, "min") == 0 and call.number(2, "max") is None:
        return Spec("relu", (call.get(0, "input"),))
    return None


def prelu(call: Call) -> Spec | None:
    return Spec("relu", (call.get(0, "input"),)) if call.param(call.get(1, "weight")) is not None else None


def rrelu(call: Call) -> Spec | None:
    return None if call.number(3, "training", False) is not False else Spec("relu", (call.get(0, "input"),))
