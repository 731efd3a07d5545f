"""Layers and norms, called as modules or as functions, in the neutral vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from bntool.graphs.base import Param
from bntool.graphs.fx_baked import own_type
from bntool.graphs.fx_calls import Call, Spec, module_params
from bntool.graphs.fx_ranks import rank_of
from bntool.graphs.fx_scaled import scaled_param, weight_path
from bntool.graphs.fx_sizes import UNKNOWN
from bntool.graphs.windows import window

Build = Callable[[Call], Spec | None]


NO_BIAS = "it has no bias to take the shift, and modules alone cannot give it one: use form='graph'"


def conv(rank: int) -> Build:
    def build(call: Call) -> Spec | None:
        padding, dilation = call.number(4, "padding", 0), call.number(5, "dilation", 1)
        params, groups = _weight_and_bias(call), call.number(6, "groups", 1)
        if params is None or UNKNOWN in (padding, groups):
            return None
        kernel = params["weight"].shape[2:]
        padded = any(_padding(padding, kernel, dilation))
        attrs = {"groups": groups, "rank": rank, "padded": padded, "no_bias": NO_BIAS}
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


def conv_transpose(rank: int) -> Build:
    def build(call: Call) -> Spec | None:
        params, groups = _weight_and_bias(call), call.number(6, "groups", 1)
        if params is None or groups is UNKNOWN:
            return None
        plain = all(k == 1 for k in params["weight"].shape[2:]) and _ones(call.number(3, "stride", 1))
        around = [call.number(4, "padding", 0), call.number(5, "output_padding", 0)]
        padded = not plain or any(map(nonzero, around))
        attrs = {"groups": groups, "rank": rank, "padded": padded, "no_bias": NO_BIAS}
        return Spec("conv_transpose", (call.get(0, "input"),), attrs, params)

    return build


def _own_params(call: Call, places: Mapping[str, tuple[int, str]]) -> dict[str, Param] | None:
    """The parameters that a call is given; None where it is given another value for one."""
    given = {name: call.get(*place) for name, place in places.items()}
    params = {name: call.param(value) for name, value in given.items() if value is not None}
    own = {name: p for name, p in params.items() if p is not None and p.writable}
    return own if len(own) == len(params) else None


def _ones(value: Any) -> bool:
    return all(v == 1 for v in (value if isinstance(value, (tuple, list)) else [value]))


def nonzero(value: Any) -> bool:
    return any(v != 0 for v in (value if isinstance(value, (tuple, list)) else [value]))


def _weight_and_bias(call: Call) -> dict[str, Param] | None:
    weight, bias = call.get(1, "weight"), call.get(2, "bias")
    path = weight_path(call.node, call.sizes)
    stored = scaled_param(path, call.sizes) if path else call.param(weight)
    params = {"weight": stored, "bias": call.param(bias)}
    if params["weight"] is None or (bias is not None and params["bias"] is None):
        return None
    return {name: p for name, p in params.items() if p is not None}


def linear(call: Call) -> Spec | None:
    """(torch lets it add a bias of any shape that broadcasts, or take a vector for its weight.)"""
    params = _weight_and_bias(call)
    shapes = [] if params is None else [param.shape for param in params.values()]
    if params is None or len(shapes[0]) != 2 or any(shape != shapes[0][:1] for shape in shapes[1:]):
        return None
    return Spec("linear", (call.get(0, "input"),), {"no_bias": NO_BIAS}, params)


def conv_module(call: Call) -> Spec:
    module = call.module()
    assert isinstance(module, nn.modules.conv._ConvNd)
    padding = _padding(module.padding, module.kernel_size, module.dilation)
    attrs: dict[str, Any] = {"groups": module.groups, "rank": len(module.kernel_size)}
    if module.transposed:
        plain = _ones(module.kernel_size) and _ones(module.stride)
        attrs["padded"] = not plain or any((*padding, *module.output_padding))
    else:
        attrs["padded"] = module.padding_mode == "zeros" and any(padding)
        attrs |= window(module.kernel_size, module.stride, module.padding, module.dilation)
        attrs["padding_mode"] = module.padding_mode
    kind = "conv_transpose" if module.transposed else "conv"
    return Spec(kind, (call.get(0, "input"),), attrs, _module_weights(call))


def linear_module(call: Call) -> Spec:
    return Spec("linear", (call.get(0, "input"),), {}, _module_weights(call))


def _module_weights(call: Call) -> dict[str, Param]:
    return module_params(call.module(), str(call.node.target), {"weight": "weight", "bias": "bias"})


def embedding_module(call: Call) -> Spec | None:
    if call.module().max_norm is not None:
        return None
    return Spec("embedding", (call.get(0, "input"),), {}, _module_weights(call))


def affine_module(kind: str) -> Build:
    return lambda call: Spec(kind, (call.get(0, "input"),), {}, _module_weights(call))


def layer_norm_module(call: Call) -> Spec:
    """(Over one element it gives its bias, whatever it is given: then it reads nothing.)"""
    shape: Sequence[int] = call.module().normalized_shape  # type: ignore[assignment]
    inputs = (call.get(0, "input"),) if math.prod(shape) > 1 else ()
    return Spec("layer_norm", inputs, {"normalized": len(shape)}, _module_weights(call))


def affine_function(kind: str) -> Build:
    """F.group_norm and F.layer_norm, which take weight and bias in the same places."""

    def build(call: Call) -> Spec | None:
        given = call.number(1, "normalized_shape", None)
        if kind == "layer_norm" and math.prod(given or (1,)) <= 1:  # (or it is not known over what)
            return None
        params = _own_params(call, {"weight": (2, "weight"), "bias": (3, "bias")})
        attrs = {"normalized": len(given)} if kind == "layer_norm" else {}
        return None if params is None else Spec(kind, (call.get(0, "input"),), attrs, params)

    return build


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


#: where a norm function takes them
PLACES = {name: (place, STATISTICS[name]) for place, name in enumerate(("mean", "var", "weight", "bias"), 1)}


def norm_module(call: Call) -> Spec | None:
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
        "rank": rank or rank_of(call, x),
        "counter_bytes": counter_bytes(module),
    }
    return Spec("instance_norm" if instance else "batch_norm", (x,), attrs, params)


def counter_bytes(norm: nn.Module) -> int:
    """The size of the number of batches seen, which a norm keeps beside its statistics."""
    counter = getattr(norm, "num_batches_tracked", None)
    return counter.nbytes if isinstance(counter, torch.Tensor) else 0


def frozen_norm(call: Call) -> Spec:
    module = call.module()
    params = module_params(module, str(call.node.target), STATISTICS)
    x = call.get(0, "x")
    rank = 4 if "2d" in type(module).__name__ else call.rank(x)  # bntool's own takes any
    attrs = {"eps": float(module.eps), "training": False, "rank": rank}  # type: ignore[arg-type]
    return Spec("batch_norm", (x,), attrs, params)


def norm_function(kind: str, training_at: int, eps_at: int, flag: str) -> Build:
    def build(call: Call) -> Spec | None:
        params, x = _own_params(call, PLACES), call.get(0, "input")
        if params is None or (isinstance(x, fx.Node) and call.param(x) is not None):
            return None
        training = call.number(training_at, flag, kind == "instance_norm")
        eps = call.number(eps_at, "eps", 1e-5)
        if eps is UNKNOWN or training is UNKNOWN:
            return None
        return Spec(kind, (x,), {"eps": eps, "training": bool(training), "rank": rank_of(call, x)}, params)

    return build
