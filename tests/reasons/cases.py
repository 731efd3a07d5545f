"""Networks in which a norm stays, each for one reason, with what a fold regardless of that would do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bntool.algebra.affine import ChannelAffine
from bntool.algebra.linear import absorb, in_channels, out_channels
from bntool.algebra.norms import norm_map
from tests.folding import Block

Run = Callable[[Any, Tensor], Any]


@dataclass(frozen=True)
class Case:
    """The map of `norm` forced into `layer` on `side`, and an Identity in its place, would be wrong.

    `seen` names a module whose hook watches what it is given, as an output of its own.
    """

    reason: str
    run: Run
    layer: str
    side: str = "after"
    layers: dict[str, Callable[[], nn.Module]] = field(default_factory=dict)
    seen: str = ""
    train: bool = False
    prepare: Callable[[Any], None] = lambda net: None

    def net(self) -> Block:
        """Layers `conv`, `norm` and `next` are there unless others are given."""
        torch.manual_seed(0)
        made = {**STANDARD, **self.layers}
        return Block(self.run, **{name: make() for name, make in made.items()})

    def forced(self, net: nn.Module) -> nn.Module:
        wrong = copy.deepcopy(net)
        norm = wrong.norm
        values = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        m = norm_map(*[v.detach().numpy() for v in values], norm.eps)
        assert isinstance(m, ChannelAffine)
        into(wrong.get_submodule(self.layer), self.side, m)
        wrong.norm = nn.Identity()
        return wrong


def into(layer: nn.Module, side: str, m: ChannelAffine) -> None:
    """The map, one number a channel as far as it goes, into a layer's weight and bias."""
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    kind = "conv" if weight.ndim > 2 else "linear"
    attrs = {"groups": 1, "rank": weight.ndim - 2}
    channels = (out_channels if side == "after" else in_channels)(kind, weight.shape, attrs)
    fitted = ChannelAffine(np.resize(m.scale, channels), np.resize(m.shift, channels))
    sides = {"post": fitted} if side == "after" else {"pre": fitted}
    new_weight, new_bias = absorb(kind, weight, bias, attrs, **sides)
    layer.weight.data.copy_(torch.from_numpy(new_weight))
    assert new_bias is not None
    layer.bias.data.copy_(torch.from_numpy(new_bias))


STANDARD: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(4, 4, 1),
    "norm": lambda: nn.BatchNorm2d(4),
    "next": lambda: nn.Conv2d(4, 4, 1),
}


class Standardised(nn.Conv2d):
    """Computes with another weight than it holds, and its code is its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias)


class Doubling(nn.BatchNorm2d):
    """Does more than normalise."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Called(nn.BatchNorm2d):
    """Does more when it is called than its forward does."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * 2  # type: ignore[no-any-return]


def view_changed(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    y[:, :1].add_(1)
    return net.norm(y)


def output_view_changed(net: Any, x: Tensor) -> Tensor:
    y = net.norm(x.tanh())
    y[:, :1].add_(1)
    return net.next(y)


def input_changed(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = x.tanh()
    z = net.norm(y)
    y.add_(1)
    return net.next(z), y


def output_changed(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = x.tanh()
    z = net.norm(y)
    z.add_(1)
    return net.next(z), y


def shared(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return net.norm(net.conv(x)), net.conv(x * 2)


def tie(net: Any) -> None:
    net.next.weight = net.conv.weight


def tie_both(net: Any) -> None:
    tie(net)
    net.next.bias = net.conv.bias


def negative(net: Any) -> None:
    net.norm.weight.data.copy_(-net.norm.weight.abs())


def no_shift(net: Any) -> None:
    net.norm.running_mean.zero_()
    net.norm.bias.data.zero_()


def no_shift_negative(net: Any) -> None:
    no_shift(net)
    negative(net)


def count_up(net: Any) -> None:
    net.next.bias.data = torch.arange(4.0).double()


def turned(x: Tensor) -> Tensor:
    """Channels along a dimension of the plane."""
    return x.transpose(1, 3)


SIX = {"next": lambda: nn.Conv2d(6, 4, 1)}
CASES = [
    Case("{} is changed in place by {}", view_changed, "conv"),
    Case("its output is changed in place by {}", output_view_changed, "next", "before"),
    Case("its input {} is changed in place elsewhere", input_changed, "next", "before"),
    Case(
        "its output is changed in place, which would now change its input", output_changed, "next", "before"
    ),
    Case("a hook on {} sees this value", lambda n, x: n.norm(n.conv(x)), "conv", seen="conv"),
    Case("{} is an output of {}", lambda n, x: (n.next(y := n.norm(x.tanh())), y), "next", "before"),
    Case("the output of {} feeds {} places: {}", lambda n, x: (n.norm(y := n.conv(x)), y.tanh()), "conv"),
    Case(
        "the output of {} is read more than once by {}",
        lambda n, x: n.norm((y := n.conv(x)) @ y),
        "conv",
        prepare=no_shift,
    ),
    Case(
        "{} feeds several places that need different maps",
        lambda n, x: n.norm(torch.cat([y := n.conv(x), y], 1)),
        "conv",
        layers={"norm": lambda: nn.BatchNorm2d(8)},
    ),
    Case("{} is called {} times, not every time with the same map", shared, "conv"),
    Case(
        "{} shares its parameters with {}, which would need other ones",
        lambda n, x: n.next(n.norm(n.conv(x)).tanh()),
        "conv",
        prepare=tie_both,
    ),
    Case("{} is also used by {}", lambda n, x: n.next(n.norm(n.conv(x)).tanh()), "conv", prepare=tie),
    Case(
        "{} is computed from other values or read where nobody can see it",
        lambda n, x: n.norm(n.conv(x)),
        "conv",
        layers={"conv": lambda: Standardised(4, 4, 1)},
    ),
    Case(
        "it is in train mode and normalises with the statistics of each batch",
        lambda n, x: n.norm(n.conv(x)),
        "conv",
        train=True,
    ),
    Case("it has hooks, which would vanish with {}", lambda n, x: n.norm(n.conv(x)), "conv", seen="norm"),
    Case(
        "the __call__ of its own class would vanish with {}",
        lambda n, x: n.norm(n.conv(x)),
        "conv",
        layers={"norm": lambda: Called(4)},
    ),
    Case(
        "the code around it asks what {} is",
        lambda n, x: n.norm(n.conv(x)) * (2 if isinstance(n.norm, nn.BatchNorm2d) else 1),
        "conv",
    ),
    Case(
        "the code around it reads {}'s tensors", lambda n, x: n.norm(n.conv(x)) * n.norm.weight.mean(), "conv"
    ),
    Case(
        "what else its forward does would be lost: use form='graph'",
        lambda n, x: n.norm(n.conv(x)),
        "conv",
        layers={"norm": lambda: Doubling(4)},
    ),
    Case(
        "its zero padding would need the shift too",
        lambda n, x: n.next(n.norm(x.tanh())),
        "next",
        "before",
        {"next": lambda: nn.Conv2d(4, 4, 3, padding=1)},
    ),
    Case(
        "the map differs along more than its channels",
        lambda n, x: n.norm(n.conv(x).flatten(1)),
        "conv",
        layers={"norm": lambda: nn.BatchNorm1d(144)},
    ),
    Case(
        "the map differs between places it pools over",
        lambda n, x: n.next(F.max_pool2d(turned(n.norm(x.tanh())), 2)),
        "next",
        "before",
        SIX,
    ),
    Case(
        "the map differs between places it averages over",
        lambda n, x: n.next(F.avg_pool2d(turned(n.norm(x.tanh())), 2)),
        "next",
        "before",
        SIX,
    ),
    Case(
        "the map differs between places it interpolates",
        lambda n, x: n.next(F.interpolate(turned(n.norm(x.tanh())), scale_factor=2, mode="bilinear")),
        "next",
        "before",
        SIX,
    ),
    Case(
        "the map differs along a padded dimension",
        lambda n, x: n.next(F.pad(turned(n.norm(x.tanh())), (1, 1, 1, 1), "reflect")),
        "next",
        "before",
        SIX,
    ),
    Case(
        "the map differs between elements a matrix product sums over",
        lambda n, x: n.next((n.norm(x.tanh()).transpose(1, 3) @ x.transpose(1, 2)).transpose(1, 2)),
        "next",
        "before",
        {"next": lambda: nn.Conv2d(6, 4, 1)},
    ),
    Case(
        "a negative scale cannot pass a square",
        lambda n, x: n.norm((y := n.conv(x)) * y),
        "conv",
        prepare=no_shift_negative,
    ),
    Case(
        "a scale of one summand cannot pass a sum",
        lambda n, x: n.next(n.norm(x.tanh()) + x),
        "next",
        "before",
    ),
    Case(
        "it multiplies with zero",
        lambda n, x: n.norm(n.conv(x) * n.next.bias.view(4, 1, 1)),
        "conv",
        prepare=count_up,
    ),
    Case("{} takes no map", lambda n, x: n.norm(n.conv(x).sigmoid()), "conv"),
    Case(
        "elements it copies to several places would need different maps",
        lambda n, x: n.norm(n.conv(x).repeat(1, 2, 1, 1)),
        "conv",
        layers={"norm": lambda: nn.BatchNorm2d(8)},
    ),
    Case("a shift cannot pass a product", lambda n, x: n.norm(n.conv(x) * x), "conv"),
    Case(
        "it has no weight and bias to take a map",
        lambda n, x: n.norm(n.group(n.conv(x))),
        "conv",
        layers={"group": lambda: nn.GroupNorm(2, 4, affine=False)},
    ),
    Case(
        "the zeros it pads with would need the shift too",
        lambda n, x: n.norm(F.unfold(n.conv(x), 3, padding=1)),
        "conv",
        layers={"norm": lambda: nn.BatchNorm1d(36)},
    ),
    Case(
        "the map differs between the rows of an attention",
        lambda n, x: n.norm(F.scaled_dot_product_attention(x, x, n.conv(x)).transpose(1, 2)),
        "conv",
        layers={"norm": lambda: nn.BatchNorm2d(6)},
    ),
]
