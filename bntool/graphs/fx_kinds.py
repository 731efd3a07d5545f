"""Table: torch functions, methods and modules -> the neutral vocabulary of `graphs.base`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from bntool.graphs.base import Param
from bntool.graphs.fx_baked import own_type
from bntool.graphs.fx_calls import Call, Spec, module_params, names
from bntool.graphs.fx_sizes import UNKNOWN
from bntool.graphs.windows import window

Build = Callable[[Call], Spec | None]
NO_BIAS = "it has no bias to take the shift, and modules alone cannot give it one: use form='graph'"


def opaque(call: Call) -> None:
    return None


def _one(kind: str, **attrs: Any) -> Build:
    return lambda call: Spec(kind, (call.get(0, "input"),), dict(attrs))


def _conv(rank: int) -> Build:
    def build(call: Call) -> Spec | None:
        padding, dilation = call.number(4, "padding", 0), call.number(5, "dilation", 1)
        params = _weight_and_bias(call)
        if params is None or padding is UNKNOWN:
            return None
        kernel = params["weight"].shape[2:]
        padded = any(_padding(padding, kernel, dilation))
        attrs = {"groups": call.number(6, "groups", 1), "rank": rank, "padded": padded, "no_bias": NO_BIAS}
        attrs |= window(kernel, call.number(3, "stride", 1), padding, dilation)
        return Spec("conv", (call.get(0, "input"),), attrs, params)

    return build


def _padding(padding: Any, kernel: Sequence[int], dilation: Any) -> list[int]:
    if padding == "valid":
        return [0]
    if padding == "same":
        spread = dilation if isinstance(dilation, (tuple, list)) else [dilation] * len(kernel)
        return [d * (k - 1) for d, k in zip(spread, kernel, strict=False)]
    return list(padding) if isinstance(padding, (tuple, list)) else [padding]


def _conv_transpose(rank: int) -> Build:
    def build(call: Call) -> Spec | None:
        params = _weight_and_bias(call)
        if params is None:
            return None
        plain = all(k == 1 for k in params["weight"].shape[2:]) and _ones(call.number(3, "stride", 1))
        padded = not (plain and not _nonzero(call.number(4, "padding", 0)))
        attrs = {"groups": call.number(6, "groups", 1), "rank": rank, "padded": padded, "no_bias": NO_BIAS}
        return Spec("conv_transpose", (call.get(0, "input"),), attrs, params)

    return build


def _ones(value: Any) -> bool:
    return all(v == 1 for v in (value if isinstance(value, (tuple, list)) else [value]))


def _nonzero(value: Any) -> bool:
    return any(v != 0 for v in (value if isinstance(value, (tuple, list)) else [value]))


def _weight_and_bias(call: Call) -> dict[str, Param] | None:
    weight, bias = call.get(1, "weight"), call.get(2, "bias")
    params = {"weight": call.param(weight), "bias": call.param(bias)}
    if params["weight"] is None or (bias is not None and params["bias"] is None):
        return None
    return {name: p for name, p in params.items() if p is not None}


def _linear(call: Call) -> Spec | None:
    params = _weight_and_bias(call)
    return None if params is None else Spec("linear", (call.get(0, "input"),), {"no_bias": NO_BIAS}, params)


def _conv_module(call: Call) -> Spec:
    module = call.module()
    assert isinstance(module, nn.modules.conv._ConvNd)
    padding = _padding(module.padding, module.kernel_size, module.dilation)
    attrs: dict[str, Any] = {"groups": module.groups, "rank": len(module.kernel_size)}
    if module.transposed:
        attrs["padded"] = not (_ones(module.kernel_size) and _ones(module.stride) and not any(padding))
    else:
        attrs["padded"] = module.padding_mode == "zeros" and any(padding)
        geometry = (module.kernel_size, module.stride, module.padding, module.dilation)
        attrs |= window(*geometry, module.padding_mode)
    kind = "conv_transpose" if module.transposed else "conv"
    return Spec(kind, (call.get(0, "input"),), attrs, _module_weights(call))


def _linear_module(call: Call) -> Spec:
    return Spec("linear", (call.get(0, "input"),), {}, _module_weights(call))


def _module_weights(call: Call) -> dict[str, Param]:
    return module_params(call.module(), str(call.node.target), {"weight": "weight", "bias": "bias"})


def _embedding_module(call: Call) -> Spec | None:
    module = call.module()
    return None if module.max_norm is not None else Spec("embedding", (), {}, _module_weights(call))


def _affine_module(kind: str) -> Build:
    return lambda call: Spec(kind, (call.get(0, "input"),), {}, _module_weights(call))


def _layer_norm_module(call: Call) -> Spec:
    """(Over one element it gives its bias, whatever it is given: then it reads nothing.)"""
    size = math.prod(call.module().normalized_shape)  # type: ignore[arg-type]
    return Spec("layer_norm", (call.get(0, "input"),) if size > 1 else (), {}, _module_weights(call))


RANKS: dict[type[nn.Module], int | None] = {
    nn.BatchNorm1d: None,
    nn.BatchNorm2d: 4,
    nn.BatchNorm3d: 5,
    nn.SyncBatchNorm: None,
    nn.InstanceNorm1d: 3,
    nn.InstanceNorm2d: 4,
    nn.InstanceNorm3d: 5,
}
STATISTICS = {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
#: the positions of a norm function's arguments
ARGUMENTS = {"mean": 1, "var": 2, "weight": 3, "bias": 4}


def _norm_module(call: Call) -> Spec | None:
    module, x = call.module(), call.get(0, "input")
    rank = RANKS[own_type(module)]
    instance = isinstance(module, nn.modules.instancenorm._InstanceNorm)
    if instance and call.rank(x) not in (None, rank):
        return None  # without a batch dimension
    params = module_params(module, str(call.node.target), STATISTICS)
    if instance and not module.track_running_stats:
        params = {k: v for k, v in params.items() if k not in ("mean", "var")}
    attrs = {
        "eps": float(module.eps),  # type: ignore[arg-type]
        "training": module.training,
        "rank": rank or call.rank(x),
    }
    return Spec("instance_norm" if instance else "batch_norm", (x,), attrs, params)


def frozen_norm(call: Call) -> Spec:
    module = call.module()
    params = module_params(module, str(call.node.target), STATISTICS)
    attrs = {"eps": float(module.eps), "training": False, "rank": 4}  # type: ignore[arg-type]
    return Spec("batch_norm", (call.get(0, "x"),), attrs, params)


def _norm_function(kind: str, training_at: int, eps_at: int, flag: str) -> Build:
    def build(call: Call) -> Spec | None:
        named = {
            "mean": (1, "running_mean"),
            "var": (2, "running_var"),
            "weight": (3, "weight"),
            "bias": (4, "bias"),
        }
        found = {name: call.param(call.get(*at)) for name, at in named.items()}
        params = {name: p for name, p in found.items() if p is not None}
        x = call.get(0, "input")
        if any(not p.writable for p in params.values()) or (
            isinstance(x, fx.Node) and call.param(x) is not None
        ):
            return None
        training = call.number(training_at, flag, kind == "instance_norm")
        eps = call.number(eps_at, "eps", 1e-5)
        return Spec(kind, (x,), {"eps": eps, "training": bool(training), "rank": call.rank(x)}, params)

    return build


def _max_pool(rank: int) -> Build:
    return _one("max_pool", dims=tuple(range(-rank, 0)))


def _avg_pool(rank: int) -> Build:
    def build(call: Call) -> Spec:
        counted = _nonzero(call.number(3, "padding", 0)) and bool(call.number(5, "count_include_pad", True))
        # (a window that ceil_mode lets hang over counts no more padding than is given: its mean stays a mean)
        divisor = call.number(6, "divisor_override")
        attrs = {"dims": tuple(range(-rank, 0)), "counts_padding": counted or divisor is not None}
        attrs |= _pool_window(call, rank) if divisor is None else {}
        return Spec("avg_pool", (call.get(0, "input"),), attrs)

    return build


def _pool_window(call: Call, rank: int) -> dict[str, Any]:
    taps = call.number(1, "kernel_size")
    taps = (taps,) * rank if isinstance(taps, int) else taps
    if taps is UNKNOWN or call.number(4, "ceil_mode", False):
        return {}
    return {
        "kernel_size": tuple(taps),
        **window(taps, call.number(2, "stride", None), call.number(3, "padding", 0)),
    }


def _reduced(call: Call, name: str) -> tuple[tuple[int, ...], bool] | None:
    dims, rank = call.number(1, name, None), call.rank(call.get(0, "input"))
    if dims is None:
        dims = None if rank is None else tuple(range(-rank, 0))
    dims = (dims,) if isinstance(dims, int) else dims
    if dims is None or dims is UNKNOWN or not all(isinstance(d, int) for d in dims):
        return None
    if any(d >= 0 for d in dims) and rank is None:
        return None
    return tuple(d - (rank or 0) if d >= 0 else d for d in dims), bool(call.number(2, "keepdim", False))


def _mean(call: Call) -> Spec | None:
    found = _reduced(call, "dim")
    return (
        None
        if found is None
        else Spec("mean", (call.get(0, "input"),), {"dims": found[0], "keepdim": found[1]})
    )


def _amax(call: Call) -> Spec | None:
    found = _reduced(call, "dim")
    if found is None or not found[1]:
        return None
    return Spec("max_pool", (call.get(0, "input"),), {"dims": found[0]})


def _interpolate(call: Call) -> Spec | None:
    rank = call.rank(call.get(0, "input"))
    mode = call.number(3, "mode", "nearest")
    spatial = {"linear": 1, "bilinear": 2, "bicubic": 2, "trilinear": 3}.get(mode)
    if spatial is None:
        if rank is None:
            return None
        spatial = rank - 2
    return Spec("upsample", (call.get(0, "input"),), {"dims": tuple(range(-spatial, 0))})


def _pad(call: Call) -> Spec | None:
    flat, mode = call.number(1, "pad"), call.number(2, "mode", "constant")
    value = call.number(3, "value", None)
    if flat is UNKNOWN:
        return None
    widths = tuple((flat[i], flat[i + 1]) for i in range(len(flat) - 2, -1, -2))
    return Spec("pad", (call.get(0, "input"),), {"widths": widths, "mode": mode, "value": value or 0.0})


def _binary(kind: str) -> Build:
    def build(call: Call) -> Spec | None:
        a, b = call.get(0, "input"), call.get(1, "other")
        if call.number(2, "alpha", 1) != 1 or call.node.kwargs.get("rounding_mode") is not None:
            return None
        x, y = call.known(a), call.known(b)
        if isinstance(y, (int, float)):
            return _with_literal(kind, a, float(y), right=True)
        if isinstance(x, (int, float)):
            return _with_literal(kind, b, float(x), right=False)
        return Spec(kind, (a, b))

    return build


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


def _negative(call: Call) -> Spec:
    return Spec("scalar", (call.get(0, "input"),), {"a": -1.0, "b": 0.0})


def _matmul(call: Call) -> Spec | None:
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


def _dropout(call: Call) -> Spec | None:
    return Spec("identity", (call.get(0, "input"),)) if _evaluated(call) else None


def _cast(call: Call) -> Spec | None:
    """A cast passes maps where it only widens: then what it is given is kept exactly."""
    before, after = call.sizes.value(call.node.all_input_nodes[0]), call.sizes.value(call.node)
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return None
    widens = torch.promote_types(before.dtype, after.dtype) == after.dtype and before.dtype.is_floating_point
    return Spec("identity", (call.node.args[0],)) if widens else None


def _attention(call: Call) -> Spec | None:
    names = ("query", "key", "value")
    if call.number(4, "dropout_p", 0.0) != 0:
        return None
    mask = call.get(3, "attn_mask")
    inputs = tuple(call.get(i, name) for i, name in enumerate(names))
    return Spec("sdpa", inputs + ((mask,) if mask is not None else ()))


def _concat(call: Call) -> Spec | None:
    parts, dim = call.get(0, "tensors"), call.number(1, "dim", call.node.kwargs.get("axis", 0))
    if not isinstance(parts, (tuple, list)) or not isinstance(dim, int):
        return None
    if dim >= 0:
        rank = call.rank(call.node)
        if rank is None:
            return None
        dim -= rank
    return Spec("concat", tuple(parts), {"dim": dim})


def _clamp(call: Call) -> Spec | None:
    if call.number(1, "min") == 0 and call.number(2, "max") is None:
        return Spec("relu", (call.get(0, "input"),))
    return None


def _prelu(call: Call) -> Spec | None:
    return Spec("relu", (call.get(0, "input"),)) if call.param(call.get(1, "weight")) is not None else None


def _rrelu(call: Call) -> Spec | None:
    return None if call.number(3, "training", False) else Spec("relu", (call.get(0, "input"),))


LAYOUT = names(
    "reshape view flatten unflatten ravel permute transpose swapaxes swapdims movedim moveaxis t squeeze "
    "unsqueeze expand expand_as broadcast_to view_as reshape_as repeat tile narrow select getitem roll flip "
    "rot90 adjoint pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle index_select unfold "
    "repeat_interleave diagonal"
)
#: give a tuple of pieces: the pieces are the values
PIECES = ("split", "chunk", "unbind", "tensor_split", "split_with_sizes", "hsplit", "vsplit", "dsplit")
#: attributes of a tensor that are data movement
LAYOUT_ATTRIBUTES = ("T", "mT", "H", "mH")

FUNCTIONS: dict[str, Build] = {
    **{f"conv{r}d": _conv(r) for r in (1, 2, 3)},
    **{f"conv_transpose{r}d": _conv_transpose(r) for r in (1, 2, 3)},
    **{f"max_pool{r}d": _max_pool(r) for r in (1, 2, 3)},
    **{f"adaptive_max_pool{r}d": _max_pool(r) for r in (1, 2, 3)},
    **{f"avg_pool{r}d": _avg_pool(r) for r in (1, 2, 3)},
    **{f"adaptive_avg_pool{r}d": _one("avg_pool", dims=tuple(range(-r, 0))) for r in (1, 2, 3)},
    **dict.fromkeys(LAYOUT, _one("layout")),
    **dict.fromkeys(("relu", "leaky_relu"), _one("relu")),
    **dict.fromkeys(("clamp", "clamp_min", "clip"), _clamp),
    **dict.fromkeys(
        ("contiguous", "clone", "detach", "alias", "positive", "requires_grad"), _one("identity")
    ),
    **dict.fromkeys(("cuda", "cpu"), _one("identity")),
    **dict.fromkeys(("to", "type", "float", "double", "half", "bfloat16", "type_as"), _cast),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"), _dropout),
    **dict.fromkeys(("feature_alpha_dropout", "feature_dropout"), _dropout),
    **dict.fromkeys(("add", "iadd", "radd"), _binary("add")),
    **dict.fromkeys(("sub", "isub", "subtract", "rsub"), _binary("sub")),
    **dict.fromkeys(("mul", "imul", "multiply"), _binary("mul")),
    **dict.fromkeys(("div", "truediv", "itruediv", "divide", "true_divide"), _binary("div")),
    **dict.fromkeys(("neg", "negative"), _negative),
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concat),
    "linear": _linear,
    "prelu": _prelu,
    "rrelu": _rrelu,
    "mean": _mean,
    "amax": _amax,
    "interpolate": _interpolate,
    "pad": _pad,
    "scaled_dot_product_attention": _attention,
    "batch_norm": _norm_function("batch_norm", 5, 7, "training"),
    "instance_norm": _norm_function("instance_norm", 5, 7, "use_input_stats"),
    "softmax": _one("softmax"),
}
MODULES: dict[type[nn.Module], Build] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv_module),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _conv_module),
    **dict.fromkeys(RANKS, _norm_module),
    nn.Linear: _linear_module,
    nn.Embedding: _embedding_module,
    nn.LayerNorm: _layer_norm_module,
    nn.GroupNorm: _affine_module("group_norm"),
}
#: modules of torch itself that are not looked into: their forward leaves Python, or reads others' parameters
TORCH_LEAVES = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Transformer, nn.TransformerEncoderLayer)


def function_name(node: fx.Node) -> str:
    """The name under which `FUNCTIONS` knows a call, without underscores; "" for foreign code."""
    if node.op == "call_method":
        return str(node.target).strip("_")
    if node.op != "call_function":
        return ""
    module = getattr(node.target, "__module__", None) or "torch"
    if module.split(".")[0] not in ("torch", "_operator", "operator", "math", "builtins"):
        return ""
    return getattr(node.target, "__name__", "").strip("_")


def changes_in_place(node: fx.Node) -> bool:
    """Whether a call overwrites its first argument."""
    if node.kwargs.get("inplace") is True:
        return True
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    if node.op not in ("call_method", "call_function"):
        return False
    return (name.endswith("_") and not name.endswith("__")) or name in IN_PLACE_OPERATORS


IN_PLACE_OPERATORS = ("iadd", "isub", "imul", "itruediv", "setitem")


def is_leaf(module: nn.Module, path: str) -> bool:
    """Modules whose call is one node: those of the table by exact type, and what cannot be looked into."""
    if own_type(module) in MODULES:
        return True
    torch_own = type(module).__module__.startswith(("torch.nn", "torch.ao.nn"))
    return torch_own and (isinstance(module, TORCH_LEAVES) or not _simple(module))


def _simple(module: nn.Module) -> bool:
    """torch's own modules that only wrap a function, or hold others."""
    return not list(module.children()) or isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
