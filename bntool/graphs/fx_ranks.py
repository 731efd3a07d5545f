"""How many dimensions a value has whose sizes are not known, as behind a mask that the example left out."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from bntool.graphs.fx_baked import is_torchs_own
from bntool.graphs.fx_calls import Call, function_name, names
from bntool.graphs.fx_sizes import Sizes

#: functions whose result has the dimensions of their first argument
SAME = names(
    "relu silu gelu elu mish leaky_relu hardswish hardsigmoid softplus sigmoid logsigmoid tanh exp log sqrt "
    "rsqrt abs neg square dropout softmax log_softmax glu layer_norm batch_norm contiguous clone detach to "
    "float double half type_as transpose swapaxes flip roll iadd isub imul itruediv"
)
#: functions whose result has those of the operand that has the most
BROADCAST = names(
    "add sub mul div truediv pow clamp clamp_min clamp_max clip masked_fill where maximum minimum"
)
REDUCING = names("sum mean amax amin prod")
#: modules that leave as many dimensions as they are given
SAME_MODULES = (
    *(nn.BatchNorm1d, nn.LayerNorm, nn.Linear, nn.Identity, nn.Dropout, nn.Softmax, nn.LogSoftmax, nn.GLU),
    *(nn.ReLU, nn.SiLU, nn.GELU, nn.ELU, nn.Mish, nn.LeakyReLU, nn.Hardswish, nn.Sigmoid, nn.Tanh, nn.PReLU),
)


class Rank(NamedTuple):
    """At `least` so many dimensions; just so many where that is `exact`."""

    least: int
    exact: bool


NOTHING = Rank(0, exact=False)


def rank_of(call: Call, argument: Any) -> int | None:
    """The number of dimensions of what a call is given, if it must be that."""
    known = call.rank(argument)
    if known is not None or not isinstance(argument, fx.Node):
        return known
    found = _Ranks(call.sizes)(argument)
    return found.least if found.exact else None


class _Ranks:
    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.found: dict[fx.Node, Rank] = {}

    def __call__(self, node: fx.Node) -> Rank:
        """(From the inputs on, as graphs are deeper than Python's stack.)"""
        todo = [node]
        while todo:
            value = todo[-1]
            first = [n for n in value.all_input_nodes if n not in self.found] if self._is_open(value) else []
            if first:
                todo += first
            else:
                self.found[todo.pop()] = self._rank(value)
        return self.found[node]

    def _is_open(self, node: fx.Node) -> bool:
        return not isinstance(self.sizes.value(node), torch.Tensor)

    def _rank(self, node: fx.Node) -> Rank:
        value = self.sizes.value(node)
        if isinstance(value, torch.Tensor):
            return Rank(value.ndim, exact=True)
        if isinstance(value, (int, float)):
            return Rank(0, exact=True)
        if node.op == "call_module":
            return self._of_module(self.sizes.module(str(node.target)), self._given(node))
        return self._of_function(function_name(node), node)

    def _of_module(self, module: nn.Module, given: Rank) -> Rank:
        if isinstance(module, _ConvNd) and is_torchs_own(module):
            return _convolved(given, len(module.kernel_size))
        return given if isinstance(module, SAME_MODULES) and is_torchs_own(module) else NOTHING

    def _of_function(self, name: str, node: fx.Node) -> Rank:
        given = self._given(node)
        if name.startswith(("conv1d", "conv2d", "conv3d")):
            return _convolved(given, int(name[4]))
        if name in SAME:
            return given
        if name in BROADCAST:
            operands = [self._operand(a) for a in (*node.args, *node.kwargs.values())]
            return Rank(max(o.least for o in operands), all(o.exact for o in operands))
        if name in REDUCING:
            dim, keeps = _argument(node, 1, "dim"), _argument(node, 2, "keepdim")
            if keeps is True:
                return given
            return Rank(max(given.least - 1, 0), given.exact) if type(dim) is int else NOTHING
        if name == "unsqueeze":
            return Rank(given.least + 1, given.exact)
        if name in ("cat", "concat") and isinstance(node.args[0], (list, tuple)):
            operands = [self._operand(a) for a in node.args[0]]
            return next((o for o in operands if o.exact and o.least > 1), NOTHING)
        return NOTHING

    def _given(self, node: fx.Node) -> Rank:
        return self._operand(node.args[0]) if node.args else NOTHING

    def _operand(self, argument: Any) -> Rank:
        if isinstance(argument, fx.Node):
            return self.found.get(argument, NOTHING)
        return Rank(0, exact=isinstance(argument, (int, float, str, type(None))))


def _convolved(given: Rank, dims: int) -> Rank:
    """A convolution takes one image, or a batch of them."""
    return Rank(dims + 2, exact=True) if given.least >= dims + 2 else Rank(dims + 1, given.exact)


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)
