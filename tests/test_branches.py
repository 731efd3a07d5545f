"""Merging parallel and chained linear ops: what becomes one layer, what must not, and that outputs stay."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from bntool.merging import Merged, merge_branches
from sample_models.repvgg import example_inputs, repvgg
from tests.folding import Block
from tests.random_norms import randomise_norms

CONVS = (nn.modules.conv._ConvNd, nn.Linear)
NORM = nn.modules.batchnorm._NormBase


def count(model: nn.Module, kinds: type | tuple[type, ...]) -> int:
    return sum(isinstance(m, kinds) for m in model.modules())


def merged(model: nn.Module, x: Tensor) -> tuple[nn.Module, list[Merged]]:
    """The model in float64 with random norms, merged; asserts that the outputs have not moved."""
    model, x = model.double().eval(), x.double()
    randomise_norms(model, (x,))
    result, entries = merge_branches(copy.deepcopy(model), ((x,), {}))
    for value in (x, torch.cat([-x, 3 * x])):
        torch.testing.assert_close(result(value.clone()), model(value.clone()), rtol=1e-10, atol=1e-10)
    return result, entries


def image(channels: int = 4, size: int = 9) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def conv(taps: int = 3, stride: int = 1, groups: int = 1, bias: bool = False, width: int = 4) -> nn.Conv2d:
    return nn.Conv2d(4, width, taps, stride, taps // 2, groups=groups, bias=bias)


def norm(width: int = 4) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Shift(nn.Module):
    """Parameters as the first operands of a product, a sum and a difference."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.randn(4, 1, 1)), nn.Parameter(torch.randn(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.beta - (self.beta + self.gamma * x)


class Viewed(nn.Module):
    """Factors and shifts that are brought into shape, or taken out of a parameter, first."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.factors = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma.view(1, -1, 1, 1) * x * self.factors[1] - self.gamma.flip(0)[:, None, None]


class Taller(nn.Module):
    """A parameter of one number that gives its operand a dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(1, 1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Along(nn.Module):
    """A view with one number a row."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(9))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma[:, None]


class Fading(nn.Module):
    """A scale that every call makes smaller for the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gamma", torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.gamma
        self.gamma.mul_(0.5)
        return y


def reflecting() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")


ONE_LAYER = {
    "three by three, one by one, identity": Block(
        lambda m, x: m.n3(m.c3(x)) + m.n1(m.c1(x)) + m.n0(x),
        c3=conv(), n3=norm(), c1=conv(1), n1=norm(), n0=norm(),
    ),
    "plain residual": Block(lambda m, x: x + m.c(x), c=conv(bias=True)),
    "scaled residual of a difference": Block(
        lambda m, x: x + m.s(m.n(m.c(x)) - m.n0(x)), c=conv(), n=norm(), n0=norm(), s=Scale()
    ),
    "scaled and shifted residual": Block(lambda m, x: m.s(m.c(x) + x), c=conv(bias=True), s=Shift()),
    "strided": Block(lambda m, x: m.a(x) + m.b(x), a=conv(3, 2), b=conv(1, 2)),
    "depthwise": Block(lambda m, x: m.a(x) + m.b(x) + x, a=conv(5, groups=4), b=conv(3, groups=4)),
    "grouped and dense": Block(lambda m, x: m.a(x) + m.b(x), a=conv(3), b=conv(3, groups=2)),
    "average pool": Block(
        lambda m, x: m.a(x) + m.n(m.p(x)), a=conv(3), p=nn.AvgPool2d(3, 1, 1), n=norm()
    ),
    "norm behind the sum": Block(lambda m, x: m.n(m.a(x) + m.b(x) + x), a=conv(3), b=conv(1), n=norm()),
    "sum of sums": Block(
        lambda m, x: (m.a(x) + m.b(x)) + (m.c(x) - 2 * x), a=conv(3), b=conv(1), c=conv(3)
    ),
    "nested": Block(lambda m, x: m.d(m.a(x) + m.b(x)), a=conv(3), b=conv(1), d=conv(1, width=2)),
    "chain": Block(lambda m, x: m.b(m.n(m.a(x))), a=conv(3, width=16), n=norm(16), b=nn.Conv2d(16, 4, 1)),
    "in place": Block(lambda m, x: m.a(x).add_(m.b(x)), a=conv(3), b=conv(1)),
    "a number that adds a dimension": Block(
        lambda m, x: m.s(m.a(x) + m.b(x)), a=conv(3), b=conv(1), s=Taller()
    ),
    "scaled by a view": Block(lambda m, x: m.s(m.a(x)) + m.b(x), a=conv(3), b=conv(1), s=Viewed()),
    "stacked and summed": Block(
        lambda m, x: torch.stack([m.a(x), m.b(x), x]).sum(0), a=conv(3), b=conv(1)
    ),
    "the mean of a stack": Block(
        lambda m, x: torch.stack([m.a(x), m.b(x)], -1).mean(-1) - x, a=conv(3), b=conv(1)
    ),
    "sums with factors": Block(
        lambda m, x: torch.sub(torch.add(m.n(m.a(x)), m.b(x), alpha=0.3), x, alpha=2),
        a=conv(3), n=norm(), b=conv(1),
    ),
    "rows and columns in turn": Block(
        lambda m, x: m.a(x) + m.n(m.c(m.r(x))), a=conv(3, groups=4), n=norm(),
        r=nn.Conv2d(4, 4, (1, 3), padding=(0, 1), groups=4, bias=False),
        c=nn.Conv2d(4, 4, (3, 1), padding=(1, 0), groups=4),
    ),
    "padded before": Block(
        lambda m, x: m.a(m.p(x)) + m.b(x) + m.o(F.pad(x, (1, 1, 1, 1))),
        p=nn.ZeroPad2d(1), a=nn.Conv2d(4, 4, 3), b=conv(1), o=nn.AvgPool2d(3, 1),
    ),
    "reflected, also behind a norm": Block(
        lambda m, x: m.a(m.n(x)) + m.b(x) + m.c(F.pad(x, (2,) * 4, mode="reflect")),
        a=reflecting(), n=norm(), b=conv(1), c=nn.Conv2d(4, 4, 5),
    ),
    "one layer read twice": Block(lambda m, x: m.n(m.a(x)) - m.a(x), a=conv(3), n=norm()),
    "dropout between": Block(lambda m, x: m.d(m.a(x)) + x, a=conv(3), d=nn.Dropout()),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_LAYER)
def test_it_becomes_one_layer(name: str) -> None:
    result, entries = merged(copy.deepcopy(ONE_LAYER[name]), image())
    assert (count(result, CONVS), count(result, NORM)) == (1, 0)
    assert all(entry.macs_saved > 0 for entry in entries)


def twice(m: Block, x: Tensor) -> Tensor:
    y = m.a(x)
    return torch.cat([y + m.b(x), y], 1)


def changed(m: Block, x: Tensor) -> Tensor:
    y = m.first(x)
    z = m.a(y)
    y.relu_()
    return z + m.b(y)


def hooked() -> nn.Conv2d:
    layer = conv(1)
    layer.register_forward_hook(lambda module, args, output: output * 2)
    return layer


KEPT = {
    "an activation between": (Block(lambda m, x: m.a(x).relu() + m.b(x), a=conv(), b=conv(1)), 2),
    "someone else reads a branch": (Block(twice, a=conv(), b=conv(1)), 2),
    "different inputs": (Block(lambda m, x: m.a(x) + m.b(x.relu()), a=conv(), b=conv(1)), 2),
    "different strides": (Block(lambda m, x: m.a(x) + m.b(x)[..., :5, :5], a=conv(3, 2), b=conv(1)), 2),
    "more work as one": (Block(lambda m, x: m.a(x) + m.b(x), a=conv(5, groups=4), b=conv(1)), 2),
    "a chain that costs more": (Block(lambda m, x: m.b(m.a(x)), a=conv(3, groups=4), b=conv(1)), 2),
    "a pool whose taps would be weights": (
        Block(lambda m, x: m.b(m.p(m.a(x))), a=conv(1), p=nn.AvgPool2d(4), b=conv(1)), 2
    ),
    "a bias before padding": (
        Block(lambda m, x: m.b(m.a(x)), a=conv(1, width=64, bias=True), b=nn.Conv2d(64, 4, 3, padding=1)), 2
    ),
    "padding twice": (
        Block(lambda m, x: m.b(m.a(x)), a=conv(3, width=64), b=nn.Conv2d(64, 4, 3, padding=1)), 2
    ),
    "padded with something else": (
        Block(lambda m, x: m.a(F.pad(x, (1,) * 4, value=1)) + m.b(x), a=nn.Conv2d(4, 4, 3), b=conv(1)), 2
    ),
    "padded on one side": (
        Block(lambda m, x: m.a(F.pad(x, (2, 0, 1, 1))) + m.b(x), a=nn.Conv2d(4, 4, 3), b=conv(1)), 2
    ),
    "rows and columns in turn, with a bias": (
        Block(
            lambda m, x: m.a(x) + m.c(m.r(x)), a=conv(3, groups=4),
            r=nn.Conv2d(4, 4, (1, 3), padding=(0, 1), groups=4),
            c=nn.Conv2d(4, 4, (3, 1), padding=(1, 0), groups=4),
        ), 3
    ),
    "reflected padding beside zeros": (Block(lambda m, x: m.a(x) + m.b(x), a=reflecting(), b=conv(3)), 2),
    "reflected padding of what a stride has left": (
        Block(lambda m, x: m.a(m.b(x)), a=reflecting(), b=conv(1, 2)), 2
    ),
    "a shared layer": (Block(lambda m, x: m.a(m.b(x).relu()) + m.b(x), a=conv(), b=conv(1)), 2),
    "changed in place meanwhile": (Block(changed, first=conv(1), a=conv(), b=conv(1)), 3),
    "a scale that fades": (Block(lambda m, x: m.a(x) + m.s(m.b(x)), a=conv(), b=conv(1), s=Fading()), 2),
    "a view along the rows": (Block(lambda m, x: m.a(x) + m.s(m.b(x)), a=conv(), b=conv(1), s=Along()), 2),
    "a hook on a branch": (Block(lambda m, x: m.a(x) + m.b(x), a=conv(), b=hooked()), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_it_stays_as_it_is(name: str) -> None:
    model, layers = KEPT[name]
    result, entries = merged(copy.deepcopy(model), image())
    assert count(result, CONVS) == layers
    assert entries == []


def test_a_norm_in_train_mode_is_not_merged() -> None:
    block = copy.deepcopy(ONE_LAYER["three by three, one by one, identity"]).double().eval()
    block.n1.train()
    _, entries = merge_branches(block, ((image().double(),), {}))
    assert not any("n1" in entry.norms for entry in entries)


def test_linear_layers_merge_too() -> None:
    block = Block(
        lambda m, x: m.c(m.a(x) + m.b(x) + x), a=nn.Linear(8, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 3)
    )
    result, entries = merged(block, torch.randn(2, 5, 8))
    assert count(result, CONVS) == 1
    assert entries[0].layers == ("a", "b", "c")


def test_a_repvgg_becomes_a_plain_network() -> None:
    result, entries = merged(repvgg(), example_inputs()[0])
    assert (count(result, nn.Conv2d), count(result, NORM)) == (6, 0)
    assert entries[1].into == "stages.4.merged"
    assert set(entries[0].norms) == {"stages.5.norm3", "stages.5.norm1", "stages.5.norm0"}


class Undecided(nn.Module):
    """A network that torch.fx cannot trace, with blocks that it can."""

    def __init__(self) -> None:
        super().__init__()
        self.block = copy.deepcopy(ONE_LAYER["plain residual"])

    def forward(self, x: Tensor) -> Tensor:
        sizes = {str(float(x.sum())): 1}
        return self.block(x) * len(sizes)


def test_blocks_of_a_network_that_cannot_be_traced_merge_in_place() -> None:
    model = Undecided().double().eval()
    x = image().double()
    result, entries = merge_branches(copy.deepcopy(model), ((x,), {}))
    assert type(result) is Undecided
    assert [entry.into for entry in entries] == ["block.merged"]
    torch.testing.assert_close(result(x), model(x), rtol=1e-10, atol=1e-10)


def test_the_new_layer_keeps_dtype_and_gradient_flag() -> None:
    block = copy.deepcopy(ONE_LAYER["plain residual"]).bfloat16().eval().requires_grad_(False)
    result, _ = merge_branches(block, ((image().bfloat16(),), {}))
    assert {p.dtype for p in result.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in result.parameters())


def test_the_new_layer_keeps_the_memory_format() -> None:
    block = copy.deepcopy(ONE_LAYER["plain residual"]).eval().to(memory_format=torch.channels_last)
    result, _ = merge_branches(block, ((image(),), {}))
    weights = [p for p in result.parameters() if p.ndim == 4]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def branch(kind: str, groups: int, taps: int) -> tuple[nn.Module, bool]:
    layers: dict[str, nn.Module] = {
        "conv": conv(taps, groups=groups),
        "norm": norm(),
        "conv norm": nn.Sequential(conv(taps, groups=groups), norm()),
        "norm conv": nn.Sequential(norm(), conv(1, groups=groups)),
        "pool": nn.AvgPool2d(3, 1, 1),
        "pool norm": nn.Sequential(nn.AvgPool2d(3, 1, 1), norm()),
        "conv conv": nn.Sequential(conv(taps, groups=groups), conv(1), norm()),
        "conv relu": nn.Sequential(conv(taps), nn.ReLU()),
        "identity": nn.Identity(),
    }
    return layers[kind], kind != "conv relu"


branches = st.tuples(
    st.sampled_from(
        ["conv", "norm", "conv norm", "norm conv", "pool", "pool norm", "conv conv", "conv relu", "identity"]
    ),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 3, 5]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(branches, min_size=2, max_size=4), st.booleans())
def test_random_sums_compute_the_same(parts: list[tuple[str, int, int]], again: bool) -> None:
    torch.manual_seed(0)
    layers = {f"b{i}": branch(*part)[0] for i, part in enumerate(parts)}

    def forward(m: Block, x: Tensor) -> Tensor:
        for _ in range(1):
            total = sum(m.get_submodule(name)(x) for name in layers)
        return m.last(total) + total if again else m.last(total)

    merged(Block(forward, **layers, last=conv(1)), image())


def test_a_value_that_an_in_place_op_changes_is_not_read_later_than_before() -> None:
    def forward(net: Block, x: Tensor) -> Tensor:
        y = net.norm(x)
        early = net.first(y)
        return y.relu_().mean() + net.second(early)

    layers = {"norm": norm(), "first": conv(1), "second": conv(1)}
    merged(Block(forward, **layers), image())


def sizes_of_a_branch(m: Block, x: Tensor) -> Tensor:
    y = m.a(x)
    n, c, h, w = y.shape
    return (y + m.b(x)).reshape(n, h * w, c).to(y.dtype)


def sizes_within_a_chain(m: Block, x: Tensor) -> Tensor:
    y = m.a(x) + m.b(x)
    return m.c(y).flatten(2) * y.shape[-1]  # type: ignore[no-any-return]


def sizes_before_a_stride(m: Block, x: Tensor) -> Tensor:
    y = m.a(x)
    return (m.c(y) + m.d(y)).flatten(2) * y.shape[-1]  # type: ignore[no-any-return]


def test_what_is_done_in_vain_to_a_copy_is_not_done_to_the_new_layer() -> None:
    def forward(m: Block, x: Tensor) -> Tensor:
        y = m.a(torch.stack([x, x, 2 * x]).sum(0))
        (y * 1.0).relu_()
        return m.b(y)  # type: ignore[no-any-return]

    result, _ = merged(Block(forward, a=conv(3), b=conv(3)), image())
    assert count(result, CONVS) == 2


MEASURED = {
    sizes_of_a_branch: ({"a": conv(3), "b": conv(1)}, 1),
    sizes_within_a_chain: ({"a": conv(3), "b": conv(1), "c": conv(1)}, 1),
    sizes_before_a_stride: ({"a": conv(1), "c": conv(3, 2), "d": conv(1, 2)}, 2),
}


@pytest.mark.parametrize("forward", MEASURED)
def test_no_layer_stays_only_for_its_sizes(forward: Any) -> None:
    layers, left = MEASURED[forward]
    model = copy.deepcopy(Block(forward, **layers))
    result, _ = merged(model, image())
    assert count(result, CONVS) == left
    x = image(size=12).double()
    torch.testing.assert_close(result(x), model(x), rtol=1e-10, atol=1e-10)
