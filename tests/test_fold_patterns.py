"""Where a norm can go: every pattern, with random statistics; where it cannot, with a counterexample."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bntool.fold import fold
from tests.folding import error, folded, names, prepared, reason


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IMAGE, TOKENS, SOUND = draw(0, 2, 4, 6, 8), draw(1, 2, 9, 4), draw(2, 2, 4, 12)
VIDEO, FLAT = draw(3, 2, 4, 3, 4, 5), draw(4, 3, 4)
Step = nn.Module | Callable[..., Tensor]


class Apply(nn.Module):
    """`function(x, *parts)` as a module."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in zip("abcdefg", parts, strict=False):
            setattr(self, name, part)
        self.count = len(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *[getattr(self, name) for name in "abcdefg"[: self.count]])


def seq(*parts: Step) -> nn.Sequential:
    return nn.Sequential(*(p if isinstance(p, nn.Module) else Apply(p) for p in parts))


def conv(outs: int = 6, kernel: int = 3, ins: int = 4, **options: object) -> nn.Conv2d:
    return nn.Conv2d(ins, outs, kernel, **options)  # type: ignore[arg-type]


norm, norm1 = nn.BatchNorm2d, nn.BatchNorm1d


def of_parts(x: Tensor, a: nn.Module, n: nn.Module, m: nn.Module) -> Tensor:
    left, right = a(x).split([2, 4], 1)
    return torch.cat([n(left), m(right)], 1)


def attention(x: Tensor, q: nn.Module, v: nn.Module, n: nn.Module) -> Tensor:
    rows = (q(x) @ x.transpose(1, 2)).softmax(-1)
    return n((F.dropout(rows, 0.1, False) @ v(x)).transpose(1, 2))


def fused_attention(x: Tensor, q: nn.Module, v: nn.Module, n: nn.Module) -> Tensor:
    return n(F.scaled_dot_product_attention(q(x), x, v(x)).transpose(1, 2))


def gate(x: Tensor, a: nn.Module, b: nn.Module, n: nn.Module, c: nn.Module) -> Tensor:
    return c(n(a(x) * b(x).mean((2, 3), keepdim=True).sigmoid()))


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(4) + 0.5)
        self.place = nn.Parameter(torch.randn(1, 4, 1, 1))
        self.n = norm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.n(torch.tanh(x) * self.gamma.view(1, -1, 1, 1) + self.place)


class Gains(nn.Module):
    """A constant per channel, applied by `step` to `value`; written to by every call with `counts`."""

    def __init__(self, step: Callable[..., Tensor], value: Tensor, *, counts: bool = False) -> None:
        super().__init__()
        self.step, self.counts = step, counts
        self.register_buffer("gains", value)

    def forward(self, x: Tensor) -> Tensor:
        if self.counts:
            self.gains.add_(1)
        return self.step(x, self.gains[:, None, None])


def gains(step: Callable[..., Tensor], channels: int = 6, **options: bool) -> Gains:
    return Gains(step, torch.linspace(-1, 2, channels) + 0.1, **options)


ALL_GO: dict[str, tuple[nn.Module, Tensor]] = {
    "conv1d": (seq(nn.Conv1d(4, 6, 3), norm1(6)), SOUND),
    "conv2d": (seq(conv(padding=1), norm(6)), IMAGE),
    "conv3d": (seq(nn.Conv3d(4, 6, 2), nn.BatchNorm3d(6)), VIDEO),
    "conv without bias": (seq(conv(bias=False), norm(6)), IMAGE),
    "grouped": (seq(conv(8, groups=2), norm(8)), IMAGE),
    "depthwise": (seq(conv(8, groups=4), norm(8)), IMAGE),
    "strided, dilated": (seq(conv(stride=2, padding=2, dilation=2), norm(6)), IMAGE),
    "transposed 1d": (seq(nn.ConvTranspose1d(4, 6, 3, 2), norm1(6)), SOUND),
    "transposed 2d in groups": (seq(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), norm(6)), IMAGE),
    "transposed 3d": (seq(nn.ConvTranspose3d(4, 2, 2), nn.BatchNorm3d(2)), VIDEO),
    "linear": (seq(nn.Linear(4, 5), norm1(5)), FLAT),
    "sync": (seq(conv(), nn.SyncBatchNorm(6)), IMAGE),
    "instance": (seq(conv(), nn.InstanceNorm2d(6, affine=True, track_running_stats=True)), IMAGE),
    "not affine": (seq(conv(), norm(6, affine=False)), IMAGE),
    "linear, transpose": (seq(nn.Linear(4, 4), lambda x: x.transpose(1, 2), norm1(4)), TOKENS),
    "linear, flatten": (seq(nn.Linear(4, 5), lambda x: x.flatten(0, 1), norm1(5)), TOKENS),
    "dropout, identity": (seq(conv(), nn.Dropout(), nn.Identity(), norm(6)), IMAGE),
    "an in-place dropout": (seq(nn.Dropout(0.5, inplace=True), norm(4), conv()), IMAGE),
    "pool": (seq(conv(), nn.AvgPool2d(2, padding=1, count_include_pad=False), norm(6)), IMAGE),
    "pool with its padding": (
        seq(conv(), nn.AvgPool2d(3, 1, 1), norm(6), nn.AvgPool2d(2), nn.Flatten(1), nn.Linear(36, 2)),
        IMAGE,
    ),
    "mean": (seq(conv(), norm(6), lambda x: x.mean((2, 3)), nn.Linear(6, 2)), IMAGE),
    "bilinear": (seq(conv(), nn.Upsample(scale_factor=2, mode="bilinear"), norm(6)), IMAGE),
    "nearest": (seq(conv(), nn.Upsample(scale_factor=2), norm(6)), IMAGE),
    "pixel unshuffle": (seq(conv(8), nn.PixelUnshuffle(2), norm(32), conv(1, 1, 32)), IMAGE),
    "channel shuffle": (seq(conv(8), nn.ChannelShuffle(2), norm(8)), IMAGE),
    "reflection": (seq(conv(), nn.ReflectionPad2d(1), norm(6)), IMAGE),
    "concat": (
        Apply(lambda x, a, b, n: n(torch.cat([a(x), b(x)], 1)), conv(3), conv(5), norm(8)),
        IMAGE,
    ),
    "concat of one norm's calls": (
        Apply(lambda x, n, a: a(torch.cat([n(x.tanh()), n(x.relu())])), norm(4), conv()),
        IMAGE,
    ),
    "concat of a value with itself": (
        Apply(lambda x, n, a: (lambda y: a(torch.cat([y, y], 3)))(n(x.tanh())), norm(4), conv()),
        IMAGE,
    ),
    "concats of concats": (
        Apply(
            lambda x, n, a: (lambda y: a(torch.cat([y, torch.cat([n(x.relu()), y], 2)], 2)))(n(x.tanh())),
            norm(4),
            conv(),
        ),
        IMAGE,
    ),
    "a shift that a layer norm takes away": (
        seq(conv(), nn.AvgPool2d(3, 1, 1), norm(6), nn.LayerNorm([4, 6]), nn.ReLU()),
        IMAGE,
    ),
    "parts": (Apply(of_parts, conv(), norm(2), norm(4)), IMAGE),
    "sum": (Apply(lambda x, a, b, n: n(a(x) + b(x)), conv(5), conv(5), norm(5)), IMAGE),
    "difference": (Apply(lambda x, a, b, n: n(a(x) - b(x)), conv(5), conv(5), norm(5)), IMAGE),
    "weighted sum": (
        Apply(
            lambda x, a, b, n: n(torch.add(a(x), b(x), alpha=2).sub(b(x), alpha=0.5)),
            conv(5),
            conv(5),
            norm(5),
        ),
        IMAGE,
    ),
    "weighted sum of a value with itself": (
        Apply(lambda x, n, a: a(torch.add(-(y := n(x.tanh())), y, alpha=3)), norm(4), conv()),
        IMAGE,
    ),
    "numbers": (Apply(lambda x, a, b, n: n(0.5 * a(x) + (1 - b(x) / 3)), conv(5), conv(5), norm(5)), IMAGE),
    "unpadded conv": (seq(nn.Tanh(), norm(4), conv()), IMAGE),
    "circular conv": (seq(nn.Tanh(), norm(4), conv(padding=1, padding_mode="circular", bias=False)), IMAGE),
    "grouped conv behind": (seq(nn.Tanh(), norm(4), conv(groups=2)), IMAGE),
    "two layers": (
        Apply(lambda x, n, a, b: a(n(x.tanh())) * b(n(x.tanh())), norm(4), conv(5), conv(5)),
        IMAGE,
    ),
    "pool, flatten, linear": (
        seq(nn.Tanh(), norm(4), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 5)),
        IMAGE,
    ),
    "norm, norm": (seq(nn.Tanh(), norm(4), norm(4), conv(2)), IMAGE),
    "attention": (Apply(attention, nn.Linear(4, 4), nn.Linear(4, 4), norm1(4)), TOKENS),
    "fused attention": (Apply(fused_attention, nn.Linear(4, 4), nn.Linear(4, 4), norm1(4)), TOKENS),
    "gate": (Apply(gate, conv(bias=False), conv(), norm(6), conv(2, 1, 6)), IMAGE),
    "operands": (LayerScale(), IMAGE),
    "gains between": (seq(conv(), gains(torch.mul), norm(6)), IMAGE),
    "one plus gains between": (seq(conv(), gains(lambda x, g: x * (1 + g)), norm(6)), IMAGE),
    "quotient between": (seq(conv(), gains(torch.div), norm(6)), IMAGE),
    "shared gains": (seq(conv(), shared := gains(torch.mul), norm(6), shared, norm(6), conv(2, 1, 6)), IMAGE),
    "gains behind": (seq(nn.Tanh(), norm(4), gains(torch.mul, 4), gains(torch.add, 4), conv()), IMAGE),
    "offset minus": (seq(nn.Tanh(), norm(4), gains(lambda x, g: g - x, 4), conv()), IMAGE),
    "behind a layer norm": (seq(nn.LayerNorm(4), lambda x: x.transpose(1, 2), norm1(4)), TOKENS),
    "behind a group norm": (seq(nn.GroupNorm(2, 4), norm(4)), IMAGE),
}


@pytest.mark.parametrize("name", ALL_GO)
def test_every_norm_goes(name: str) -> None:
    model, x = ALL_GO[name]
    result, report = folded(model, x)
    assert names(report.kept) == []
    assert report.found == len(report.folded) > 0
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in result.modules())


def _functional(x: Tensor, norm: nn.Module, conv: nn.Module) -> Tensor:
    return F.conv_transpose2d(norm(x.tanh()), conv.weight, conv.bias, output_padding=1, dilation=2)


@pytest.mark.parametrize("called", ["module", "function"])
def test_places_that_a_transposed_convolution_adds_have_no_shift(called: str) -> None:
    conv = nn.ConvTranspose2d(4, 4, 1, output_padding=1, dilation=2)
    model = seq(nn.Tanh(), norm(4), conv) if called == "module" else Apply(_functional, norm(4), conv)
    _, report = folded(model, IMAGE)
    assert "its zero padding would need the shift too" in reason(report)


def test_a_max_pool_lets_a_positive_scale_pass() -> None:
    model = prepared(seq(conv(), nn.MaxPool2d(2), norm(6)), IMAGE)
    model[2].weight.data.abs_()
    _, report = folded(model, IMAGE, prepare=False)
    assert names(report.folded) == ["2"]


# --- what must stay: folding there anyway is shown to be wrong

STAYS: dict[str, tuple[nn.Module, Tensor, str]] = {
    "activation between": (seq(conv(), nn.ReLU(), norm(6)), IMAGE, "a shift cannot pass an activation"),
    "negative scale, max pool": (
        seq(conv(40), nn.MaxPool2d(2), norm(40)),
        IMAGE,
        "turns a maximum into a minimum",
    ),
    "zero-padded conv": (
        seq(nn.Tanh(), norm(4), conv(padding=1)),
        IMAGE,
        "zero padding would need the shift",
    ),
    "norm on the wrong dimension": (seq(nn.Linear(4, 4), norm1(9)), TOKENS, "more than its channels"),
    "second reader": (
        Apply(lambda x, a, n: (lambda y: n(y) + y.tanh())(a(x)), conv(), norm(6)),
        IMAGE,
        "feeds 2 places: b, tanh",
    ),
    "layer's value is an output": (
        Apply(lambda x, a, n: (a(x).sin(), n(x)), conv(), norm(4)),
        IMAGE,
        "output",
    ),
    "output on one side, input on the other": (seq(norm(4)), IMAGE, "is an output of the model"),
    "gate takes no shift": (
        Apply(lambda x, a, b, n: n(a(x) * b(x).sigmoid()), conv(), conv(), norm(6)),
        IMAGE,
        "a shift cannot pass a product",
    ),
    "zeros padded": (seq(conv(), nn.ZeroPad2d(1), norm(6)), IMAGE, "its padding would need the map too"),
    "pool with its padding": (seq(conv(), nn.AvgPool2d(3, padding=1), norm(6)), IMAGE, "its padding counts"),
    "a gain of zero": (
        seq(conv(), Gains(torch.mul, torch.tensor([0.0, 1, 2, 3, 4, 5])), norm(6)),
        IMAGE,
        "it multiplies with zero",
    ),
    "attention without softmax": (
        Apply(lambda x, v, n: n(((x @ x.transpose(1, 2)) @ v(x)).transpose(1, 2)), nn.Linear(4, 4), norm1(4)),
        TOKENS,
        "a shift cannot pass a product",
    ),
    "upsampled after mixing places": (
        seq(conv(8), nn.Flatten(2), lambda x: x.transpose(1, 2), norm1(24), nn.ReLU()),
        IMAGE,
        "more than its channels",
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_blocks_a_norm_is_said(name: str) -> None:
    model, x, why = STAYS[name]
    _, report = folded(model, x)
    assert why in reason(report), reason(report)


def test_gains_that_change_are_no_constants() -> None:
    model = prepared(seq(conv(), gains(torch.mul, counts=True), norm(6)), IMAGE)
    report = fold(model, IMAGE, verify=False).report
    assert "a shift cannot pass a product" in reason(report)


def test_folding_through_an_activation_would_be_wrong() -> None:
    right = prepared(seq(conv(), nn.ReLU(), norm(6)), IMAGE)
    wrong = seq(_absorbed(right[0], right[2]), nn.ReLU())
    assert error(right, wrong, IMAGE) > 0.01


def test_folding_through_a_max_pool_with_a_negative_scale_would_be_wrong() -> None:
    right = prepared(seq(conv(40), nn.MaxPool2d(2), norm(40)), IMAGE)
    wrong = seq(_absorbed(right[0], right[2]), nn.MaxPool2d(2))
    assert (right[2].weight < 0).any()
    assert error(right, wrong, IMAGE) > 0.01


def test_moving_a_shift_into_a_zero_padded_conv_would_be_wrong() -> None:
    right = prepared(seq(nn.Tanh(), norm(4), conv(padding=1)), IMAGE)
    unpadded = prepared(seq(nn.Tanh(), norm(4), conv()), IMAGE)
    unpadded.load_state_dict(right.state_dict())
    result, _ = folded(unpadded, IMAGE, prepare=False)
    wrong = seq(nn.Tanh(), conv(padding=1)).double()
    wrong[1].load_state_dict(result[2].state_dict())
    assert error(right, wrong, IMAGE) > 0.01


def test_a_linears_features_are_not_a_norms_channels_even_when_their_numbers_agree() -> None:
    x = draw(7, 2, 4, 4)
    right = prepared(seq(nn.Linear(4, 4), norm1(4)), x)
    _, report = folded(right, x, prepare=False)
    assert report.folded == []
    assert error(right, seq(_absorbed(right[0], right[1])), x) > 0.01


def _absorbed(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """The layer with the norm folded into it, right or wrong."""
    joined = seq(layer, norm)
    x = draw(8, 2, 4, 6, 8) if isinstance(layer, nn.Conv2d) else FLAT
    return folded(joined, x, prepare=False)[0][0]
