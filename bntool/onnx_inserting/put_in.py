"""A BatchNormalization behind a node of an ONNX model, set so that it is the identity on what it has seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper

from bntool.algebra.affine import Array
from bntool.errors import UsageError
from bntool.graphs.onnx_edit import Edit
from bntool.graphs.onnx_ir import origin
from bntool.graphs.onnx_tensors import numpy_dtype
from bntool.onnx_inserting.sites import CONVS, OnnxSite
from bntool.onnx_inserting.statistics import Pooled
from bntool.placing.entry import InsertEntry


@dataclass(frozen=True)
class Setting:
    """`momentum` is torch's: running = (1 - momentum) * running + momentum * batch.

    Raises: UsageError for None, torch's average over all batches, which the format has not.
    """

    eps: float = 1e-5
    momentum: float | None = 0.1
    keep_bias: bool = False

    def __post_init__(self) -> None:
        if self.momentum is None:
            advice = "Give a number, such as 0.1."
            raise UsageError("ONNX has no average over all batches", where="momentum", next=advice)


def put_in(edit: Edit, site: OnnxSite, seen: Pooled, n_eff: int, setting: Setting) -> InsertEntry:
    """y = (x - mean) / sqrt(var + eps) * weight + bias with weight = sqrt(var + eps), bias = mean.

    A bias of the layer goes, and the norm's mean is that much less.
    """
    place, name = origin(site.node), f"{site.layer}_norm"
    weight = place.slots["weight"].const
    assert weight is not None
    dtype = numpy_dtype(weight.data_type)
    shift, word = _taken_bias(edit, site, keep=setting.keep_bias)
    eps = float(np.float32(setting.eps))  # as the format stores it
    variance = seen.variance.astype(dtype)
    values = {
        "weight": np.sqrt(variance.astype(np.float64) + eps),
        "bias": seen.mean,
        "running_mean": seen.mean - shift,
        "running_var": variance,
    }
    names = [_tensor(edit, f"{name}.{leaf}", value.astype(dtype)) for leaf, value in values.items()]

    def norm(x: str, y: str) -> NodeProto:
        assert setting.momentum is not None
        momentum = 1.0 - setting.momentum
        kind, label = "BatchNormalization", edit.fresh(name)
        return helper.make_node(kind, [x, *names], [y], name=label, epsilon=eps, momentum=momentum)

    edit.put_behind(place.scope, place.proto, norm)
    return InsertEntry(name, site.layer, "batch", site.channels, n_eff, "", word, int((variance == 0).sum()))


def _tensor(edit: Edit, name: str, values: Array) -> str:
    return edit.tensor(name, values.shape, values.dtype, lambda: values)


def _taken_bias(edit: Edit, site: OnnxSite, *, keep: bool) -> tuple[Array | float, str]:
    """The convolution's bias, which the norm takes over, and what becomes of it."""
    place = origin(site.node)
    if "bias" not in site.node.params:
        return 0.0, "none"
    if keep or site.node.kind not in CONVS:
        return 0.0, "kept"
    bias = site.node.params["bias"].fetch()
    edit.drop_bias(place.scope, place.slots["bias"])
    return bias, "dropped"
