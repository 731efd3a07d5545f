"""Laws of merging, each against the real convolution: (a + b)(x) == a(x) + b(x), (a then b)(x) == b(a(x))."""

from __future__ import annotations

from dataclasses import replace
from math import gcd

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bntool.algebra.affine import Blocked, ChannelAffine
from bntool.algebra.kernels import (
    Kernel,
    average,
    identity,
    inflated,
    plus,
    regrouped,
    scaled,
    then,
    widened,
    without_padding,
)

CONV = (None, F.conv1d, F.conv2d, F.conv3d)


def apply(kernel: Kernel, x: Tensor) -> Tensor:
    """The kernel as PyTorch computes it."""
    weight, bias = torch.from_numpy(kernel.weight), torch.from_numpy(kernel.bias)
    if kernel.rank == 0:
        return F.linear(x, weight, bias)
    conv = CONV[kernel.rank]
    assert conv is not None
    if kernel.mode != "zeros":
        flat = [width for width in reversed(kernel.padding) for _ in range(2)]
        x, kernel = F.pad(x, flat, mode=kernel.mode), without_padding(kernel)
    return conv(x, weight, bias, kernel.stride, kernel.padding, kernel.dilation, kernel.groups)


def value(kernel: Kernel, size: int = 11, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, kernel.in_channels, *(size + i for i in range(kernel.rank)))
    return torch.randn(shape, generator=generator, dtype=torch.double)


def agree(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@st.composite
def kernels(draw: st.DrawFn, rank: int, ins: int, outs: int, *, bias: bool = True) -> Kernel:
    """Any convolution with these channels."""
    groups = draw(st.sampled_from([g for g in (1, 2, 4) if gcd(ins, outs) % g == 0])) if rank else 1
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    sizes = [
        tuple(draw(st.integers(low, high)) for _ in range(rank))
        for low, high in ((1, 3), (1, 2), (0, 2), (1, 2))
    ]
    taps, stride, padding, dilation = sizes
    weight = rng.normal(size=(outs, ins // groups, *taps))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"])) if rank else "zeros"
    return Kernel(weight, rng.normal(size=outs) * bias, groups, stride, padding, dilation, mode)


ranks = st.integers(0, 2)


@settings(max_examples=150, deadline=None)
@given(st.data(), ranks)
def test_rewriting_a_kernel_does_not_change_it(data: st.DataObject, rank: int) -> None:
    kernel = data.draw(kernels(rank, 4, 8))
    want = apply(kernel, value(kernel))
    for groups in (g for g in (1, 2, 4) if kernel.groups % g == 0):
        agree(apply(regrouped(kernel, groups), value(kernel)), want)
    agree(apply(inflated(kernel, (1,) * rank), value(kernel)), want)
    wider = widened(kernel, tuple(p + 2 * d for p, d in zip(kernel.padding, kernel.dilation, strict=True)))
    assert isinstance(wider, Kernel)
    agree(apply(wider, value(kernel)), want)


@settings(max_examples=300, deadline=None)
@given(st.data(), ranks)
def test_parallel_kernels_add(data: st.DataObject, rank: int) -> None:
    a, b = data.draw(kernels(rank, 4, 4)), data.draw(kernels(rank, 4, 4))
    both = plus(a, b)
    assume(not isinstance(both, Blocked))
    agree(apply(both, value(a)), apply(a, value(a)) + apply(b, value(a)))


@settings(max_examples=300, deadline=None)
@given(st.data(), ranks, st.booleans())
def test_chained_kernels_compose(data: st.DataObject, rank: int, bias: bool) -> None:
    a, b = data.draw(kernels(rank, 4, 8, bias=bias)), data.draw(kernels(rank, 8, 4))
    chain = then(a, b)
    assume(not isinstance(chain, Blocked))
    agree(apply(chain, value(a)), apply(b, apply(a, value(a))))


def conv(
    ins: int, outs: int, taps: int, padding: int = 0, stride: int = 1, groups: int = 1, dilation: int = 1
) -> Kernel:
    rng = np.random.default_rng(taps)
    weight = rng.normal(size=(outs, ins // groups, taps, taps))
    return Kernel(weight, rng.normal(size=outs), groups, (stride,) * 2, (padding,) * 2, (dilation,) * 2)


@pytest.mark.parametrize(
    ("a", "b", "macs"),
    [
        (conv(4, 4, 3, 1), conv(4, 4, 1), 4 * 4 * 9),
        (conv(4, 4, 3, 1), identity(4, 2), 4 * 4 * 9),
        (conv(4, 4, 3, 1, 2), conv(4, 4, 1, 0, 2), 4 * 4 * 9),
        (conv(4, 4, 5, 2, groups=4), conv(4, 4, 3, 1, groups=4), 4 * 25),
        (conv(4, 4, 5, 2, groups=4), identity(4, 2), 4 * 25),
        (conv(4, 4, 3, 1), average(4, (3, 3), (1, 1), (1, 1)), 4 * 4 * 9),
        (conv(4, 4, 3, 1, groups=2), conv(4, 4, 1), 4 * 4 * 9),
        (conv(4, 4, 3, 2, dilation=2), conv(4, 4, 1), 4 * 4 * 9),
        (conv(4, 4, 3, 2, dilation=2), conv(4, 4, 3, 1), 4 * 4 * 25),
    ],
)
def test_the_branches_of_known_blocks_merge(a: Kernel, b: Kernel, macs: int) -> None:
    for both in (plus(a, b), plus(b, a)):
        assert isinstance(both, Kernel)
        assert both.macs == macs
        agree(apply(both, value(a)), apply(a, value(a)) + apply(b, value(a)))


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        (conv(4, 4, 3, 1), conv(4, 4, 3, 1, 2), "strides"),
        (conv(4, 4, 3, 1), conv(4, 8, 3, 1), "channels"),
        (conv(4, 4, 3, 1), conv(4, 4, 3, 0), "centres"),
        (conv(4, 4, 3, 1), replace(conv(4, 4, 3, 1), mode="reflect"), "different values"),
        (conv(4, 4, 3, 2, dilation=2), conv(4, 4, 3, 1, dilation=2), "dilation"),
    ],
)
def test_branches_that_do_not_fit_are_refused(a: Kernel, b: Kernel, reason: str) -> None:
    refusal = plus(a, b)
    assert isinstance(refusal, Blocked)
    assert reason in refusal.reason


def test_branches_that_pad_with_different_values_are_refused_and_rightly() -> None:
    a, b = conv(4, 4, 3, 1), replace(conv(4, 4, 3, 1), mode="reflect")
    one = plus(a, replace(b, mode="zeros"))
    assert isinstance(plus(a, b), Blocked)
    assert isinstance(one, Kernel)
    assert not torch.allclose(apply(one, value(a)), apply(a, value(a)) + apply(b, value(a)))


def unpadded_interior(a: Kernel, b: Kernel, x: Tensor) -> bool:
    """Whether composing as if no border existed would be right here."""
    chain = then(a, replace(b, padding=(0, 0)))
    assert isinstance(chain, Kernel)
    padding = tuple(p + q * s for p, q, s in zip(a.padding, b.padding, a.stride, strict=True))
    return torch.allclose(apply(replace(chain, padding=padding), x), apply(b, apply(a, x)))


@pytest.mark.parametrize("first", [conv(4, 4, 1), conv(4, 4, 3, 1)])
def test_a_chain_that_padding_makes_inexact_is_refused_and_rightly(first: Kernel) -> None:
    second = conv(4, 4, 3, 1)
    assert isinstance(then(first, second), Blocked)
    assert not unpadded_interior(first, second, value(first))


def test_a_bias_free_pointwise_layer_composes_with_a_padded_one() -> None:
    first = replace(conv(4, 8, 1), bias=np.zeros(8))
    chain = then(first, conv(8, 4, 3, 1))
    assert isinstance(chain, Kernel)
    assert chain.macs == 4 * 4 * 9


def test_a_stride_that_skips_what_is_read_next_is_refused() -> None:
    assert isinstance(then(conv(4, 4, 1, stride=2), conv(4, 4, 3)), Blocked)


def test_scaling_and_negating_act_on_the_output() -> None:
    kernel = conv(4, 3, 3, 1)
    m = ChannelAffine(np.array([2.0, -1.0, 0.0]), np.array([1.0, 2.0, 3.0]))
    scale, shift = (torch.from_numpy(v).view(-1, 1, 1) for v in (m.scale, m.shift))
    agree(apply(scaled(kernel, m), value(kernel)), apply(kernel, value(kernel)) * scale + shift)
    minus = ChannelAffine(np.full(3, -1.0), np.zeros(3))
    agree(apply(scaled(kernel, minus), value(kernel)), -apply(kernel, value(kernel)))


def test_an_average_pool_is_a_kernel() -> None:
    kernel = average(4, (3, 2), (2, 1), (1, 1))
    want = F.avg_pool2d(value(kernel), (3, 2), (2, 1), (1, 1), count_include_pad=True)
    agree(apply(kernel, value(kernel)), want)
