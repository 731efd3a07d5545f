"""The laws of absorbing, on every linear op: `post . op . pre` is the op with the new weight and bias."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bntool.algebra.absorbing import before, behind
from bntool.algebra.affine import Blocked, ChannelAffine
from bntool.algebra.linear import LINEAR, absorb, in_channels, out_channels
from bntool.algebra.norms import norm_map, norm_parameters

Op = Callable[[Tensor, Tensor, Tensor | None], Tensor]
TOKENS = torch.tensor([[0, 2, 1], [3, 3, 0]])


def conv(rank: int, *, transposed: bool = False, **options: Any) -> Op:
    function = getattr(F, f"conv_transpose{rank}d" if transposed else f"conv{rank}d")
    return lambda x, w, b: function(x, w, b, **options)


def table(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return F.embedding(TOKENS, w) if b is None else F.embedding(TOKENS, w) + b


#: name -> (kind, attributes, op, input's shape, weight's shape)
LAYERS: dict[str, tuple[str, dict[str, Any], Op, tuple[int, ...], tuple[int, ...]]] = {
    "conv1d": ("conv", {"groups": 1, "rank": 1}, conv(1), (2, 4, 9), (6, 4, 3)),
    "conv2d": ("conv", {"groups": 1, "rank": 2}, conv(2, stride=2), (2, 4, 7, 6), (6, 4, 3, 2)),
    "conv3d": ("conv", {"groups": 1, "rank": 3}, conv(3), (2, 4, 4, 4, 4), (2, 4, 2, 2, 2)),
    "grouped": ("conv", {"groups": 2, "rank": 2}, conv(2, groups=2), (2, 4, 6, 6), (6, 2, 3, 3)),
    "depthwise": ("conv", {"groups": 4, "rank": 2}, conv(2, groups=4), (2, 4, 6, 6), (8, 1, 3, 3)),
    "padded": (
        "conv",
        {"groups": 1, "rank": 2, "padded": True},
        conv(2, padding=1),
        (2, 4, 6, 6),
        (6, 4, 3, 3),
    ),
    "transposed": (
        "conv_transpose",
        {"groups": 1, "rank": 2, "padded": True},
        conv(2, transposed=True, stride=2, padding=1),
        (2, 4, 5, 5),
        (4, 3, 3, 3),
    ),
    "transposed groups": (
        "conv_transpose",
        {"groups": 2, "rank": 1, "padded": True},
        conv(1, transposed=True, groups=2),
        (2, 4, 5),
        (4, 3, 3),
    ),
    "linear": ("linear", {}, F.linear, (2, 5, 4), (6, 4)),
    "gemm": ("linear", {"transposed": True}, lambda x, w, b: F.linear(x, w.T, b), (2, 4), (4, 6)),
    "matmul": (
        "matmul_const",
        {"side": "right"},
        lambda x, w, b: x @ w + (0 if b is None else b),
        (2, 5, 4),
        (4, 6),
    ),
    "left matmul": (
        "matmul_const",
        {"side": "left"},
        lambda x, w, b: w @ x + (0 if b is None else b[:, None]),
        (2, 4, 5),
        (6, 4),
    ),
    "embedding": ("embedding", {}, table, (0,), (4, 5)),
}


def vector(rng: np.random.Generator, n: int, *, shifts: bool) -> ChannelAffine:
    return ChannelAffine(rng.standard_normal(n), rng.standard_normal(n) * shifts)


def test_every_row_has_a_sample() -> None:
    assert {kind for kind, *_ in LAYERS.values()} == set(LINEAR)


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), bias=st.booleans())
def test_post_op_pre_is_one_op(name: str, seed: int, bias: bool) -> None:
    kind, attrs, op, shape, weights = LAYERS[name]
    rng = np.random.default_rng(seed)
    x, w = torch.from_numpy(rng.standard_normal(shape)), rng.standard_normal(weights)
    outs, ins = out_channels(kind, weights, attrs), in_channels(kind, weights, attrs)
    b = rng.standard_normal(outs) if bias else None
    axis, rank = LINEAR[kind].axis(attrs), len(shape)
    post = vector(rng, outs, shifts=True)
    pre = vector(rng, ins, shifts=not attrs.get("padded")) if ins else None
    given_x = x if pre is None else torch.from_numpy(ChannelAffine.along(pre, axis, rank)(x.numpy()))
    y = op(given_x, torch.from_numpy(w), None if b is None else torch.from_numpy(b)).numpy()
    want = ChannelAffine.along(post, axis, y.ndim)(y)
    new_w, new_b = absorb(kind, w, b, attrs, pre, post)
    got = op(x, torch.from_numpy(new_w), None if new_b is None else torch.from_numpy(new_b)).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


def test_the_law_sees_a_weight_that_is_one_percent_off() -> None:
    kind, attrs, op, shape, weights = LAYERS["conv2d"]
    rng = np.random.default_rng(0)
    x, w = torch.from_numpy(rng.standard_normal(shape)), rng.standard_normal(weights)
    post = vector(rng, 6, shifts=True)
    want = ChannelAffine.along(post, 1, 4)(op(x, torch.from_numpy(w), None).numpy())
    new_w, new_b = absorb(kind, w, None, attrs, None, post)
    assert new_b is not None
    new_w[0, 0, 0, 0] *= 1.01
    got = op(x, torch.from_numpy(new_w), torch.from_numpy(new_b)).numpy()
    assert not np.allclose(got, want, rtol=1e-9, atol=1e-9)


def test_a_map_that_is_not_one_of_channels_is_refused() -> None:
    shapes = {"weight": (6, 4, 3, 3)}
    attrs = {"groups": 1, "rank": 2}
    places = ChannelAffine(np.ones((1, 6, 2, 1)), np.zeros((1, 6, 2, 1)))
    other = ChannelAffine(np.ones((1, 5, 1, 1)), np.zeros((1, 5, 1, 1)))
    one = ChannelAffine(np.full((1, 1, 1, 1), 2.0), np.zeros((1, 1, 1, 1)))
    assert isinstance(behind("conv", attrs, shapes, places), Blocked)
    assert isinstance(behind("conv", attrs, shapes, other), Blocked)
    form = behind("conv", attrs, shapes, one)
    assert not isinstance(form, Blocked)
    assert form.shape == (6,)


def test_a_shift_before_zero_padding_is_refused_and_a_scale_is_not() -> None:
    shapes, attrs = {"weight": (6, 4, 3, 3)}, {"groups": 1, "rank": 2, "padded": True}
    size = (1, 4, 1, 1)
    shift = ChannelAffine(np.ones(size), np.ones(size))
    assert isinstance(before("conv", attrs, shapes, shift), Blocked)
    assert not isinstance(
        before("conv", attrs, shapes, ChannelAffine(np.full(size, 2.0), np.zeros(size))), Blocked
    )


@given(seed=st.integers(0, 10_000))
def test_a_norms_map_and_parameters_belong_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mean, var, x = rng.standard_normal(4), rng.uniform(0.1, 2, 4), rng.standard_normal((3, 4))
    weight, bias = rng.standard_normal(4), rng.standard_normal(4)
    own = norm_map(mean, var, weight, bias, 1e-5)
    assert not isinstance(own, Blocked)
    want = F.batch_norm(*(torch.from_numpy(a) for a in (x, mean, var, weight, bias)), eps=1e-5).numpy()
    np.testing.assert_allclose(own(x), want, rtol=1e-9, atol=1e-9)
    again = norm_parameters(own, mean, var, 1e-5)
    np.testing.assert_allclose(again, (weight, bias), rtol=1e-9, atol=1e-9)
