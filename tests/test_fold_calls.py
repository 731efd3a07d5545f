"""Ways a norm or a layer can be called: functions, keywords, subclasses, parametrizations, control flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.testing import assert_close

from bntool.edits import apply_plan
from bntool.fold import fold
from tests.folding import error, folded, names, outputs, prepared, reason

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(input=self.conv(input=x))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.randn(4, 4, 3, 3)), nn.BatchNorm2d(4)
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.conv2d(x, weight=self.weight, bias=self.bias, stride=2, padding=1))


class SameConv(nn.Conv2d):
    """A subclass whose own forward is seen to compute with its weight and bias."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, self.stride)


class Standardised(nn.Conv2d):
    """A subclass whose own forward computes the weight: a new weight would not be used as it is."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w, self.bias)


class Deaf(nn.Conv2d):
    """A subclass that never uses a bias."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


class NormAct(nn.BatchNorm2d):
    """A norm that also drops and activates, the way timm's does."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)
        return self.act(self.drop(x))


class Doubled(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class FrozenBatchNorm2d(nn.Module):
    """The way detection libraries write it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-5
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class Named(nn.BatchNorm2d):
    """A subclass that adds nothing."""


def chain(*parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(*parts)


GO: dict[str, nn.Module] = {
    "keywords": Keywords(),
    "functional conv": Functional(),
    "same conv": chain(SameConv(4, 4, 3), nn.BatchNorm2d(4)),
    "same conv without bias": chain(SameConv(4, 4, 3, bias=False), nn.BatchNorm2d(4)),
    "standardised weight, scale downwards": chain(
        Standardised(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    ),
    "frozen": chain(nn.Conv2d(4, 4, 3), FrozenBatchNorm2d(4)),
    "plain subclass": chain(nn.Conv2d(4, 4, 3), Named(4)),
    "norm with activation": chain(nn.Conv2d(4, 4, 3), NormAct(4)),
}


@pytest.mark.parametrize("name", GO)
def test_goes(name: str) -> None:
    _, report = folded(GO[name], X)
    assert (report.found, len(report.folded)) == (1, 1), report


STAY: dict[str, tuple[nn.Module, str]] = {
    "standardised weight": (chain(Standardised(4, 4, 3), nn.BatchNorm2d(4)), "computed from other values"),
    "deaf to bias": (chain(Deaf(4, 4, 3, bias=False), nn.BatchNorm2d(4)), "no bias to take the shift"),
    "more than a norm": (chain(nn.Conv2d(4, 4, 3), Doubled(4)), "what else its forward does"),
}


@pytest.mark.parametrize("name", STAY)
def test_stays(name: str) -> None:
    model, why = STAY[name]
    _, report = folded(model, X)
    assert why in reason(report)


def test_the_activation_of_a_norm_survives() -> None:
    result, _ = folded(chain(nn.Conv2d(4, 4, 3), NormAct(4)), X)
    assert isinstance(result[1], nn.SiLU)


NORMED = {
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "parametrized weight_norm": nn.utils.parametrizations.weight_norm,
    "parametrized spectral_norm": nn.utils.parametrizations.spectral_norm,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("how", NORMED)
def test_parametrized_layers_are_baked_on_the_copy(how: str) -> None:
    wrap: Any = NORMED[how]
    model = chain(wrap(nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4), nn.ReLU(), wrap(nn.Conv2d(4, 4, 1)))
    result, report = folded(model, X)
    assert names(report.folded) == ["1"]
    assert "weight" in dict(result[0].named_parameters())
    assert "weight" not in dict(result[3].named_parameters())
    fresh = chain(wrap(nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4), nn.ReLU(), wrap(nn.Conv2d(4, 4, 1)))
    apply_plan(fresh.double().eval(), report.plan).load_state_dict(result.state_dict())
    assert_close(fresh(X), result(X))


def test_a_pruned_norm_is_what_its_next_call_makes_it() -> None:
    """(Between calls it has the gamma of the last one.)"""
    model = prepared(chain(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), X)
    prune.l1_unstructured(model[1], "weight", 1)
    with torch.no_grad():
        model[1].weight_orig.mul_(3)
    result, report = folded(model, X, prepare=False)
    assert names(report.folded) == ["1"]
    assert not result[0].weight.any(dim=1).all()


class ReadsItsComputedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).tanh() + self.conv.weight.mean()


@pytest.mark.parametrize("form", ["module", "graph"])
def test_a_computed_weight_that_the_code_reads_is_not_baked(form: str) -> None:
    _, report = folded(ReadsItsComputedWeight(), X, form=form)
    assert "conv.weight is also used by" in reason(report)


class ScalesBehindItsComputedWeight(nn.Module):
    """A norm whose shift the layer takes, as a bias, and whose scale goes on through a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1, bias=False))
        self.norm, self.head = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu()) + self.conv.weight.mean()


@pytest.mark.parametrize("form", ["module", "graph"])
def test_a_computed_weight_that_only_gets_a_bias_beside_it_stays_computed(form: str) -> None:
    model = ScalesBehindItsComputedWeight()
    result, report = folded(model, X, form=form)
    assert names(report.folded) == ["norm"]
    assert parametrize.is_parametrized(result.conv, "weight")
    assert not isinstance(model.conv.bias, Tensor)
    if form == "module":
        fresh = apply_plan(ScalesBehindItsComputedWeight(), report.plan)
        fresh.double().eval().load_state_dict(result.state_dict())
        assert_close(fresh(X), result(X))


class Branchy(nn.Module):
    """Which way it goes depends on the data."""

    def __init__(self, *, same: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.same = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), same

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if x.mean() > 0:
            return self.norm(y) * 2
        return self.norm(y) if self.same else y


def test_a_norm_on_every_way_goes_and_on_one_way_stays() -> None:
    _, report = folded(Branchy(same=True), X)
    assert len(report.folded) == 1
    assert len(folded(Branchy(same=True), -X)[1].folded) == 1


@pytest.mark.parametrize("sign", [1, -1])
def test_a_way_without_the_norm_keeps_it(sign: int) -> None:
    model = prepared(Branchy(same=True), X)
    model.same = False
    _, report = folded(model, X * sign, prepare=False)
    assert len(report.kept) == 1


class Loops(nn.Module):
    """Runs a block as often as the data say: nobody can trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.block = chain(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Tanh())
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.abs().max()) + 1):
            x = self.block(x)
        return self.norm(x)


class ReachesIn(Loops):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.block[0](x)


def test_a_decision_that_reads_the_value_keeps_it() -> None:
    class Reads(Branchy):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) * (2 if y.mean() > 0 else 3)

    _, report = folded(Reads(same=True), X)
    assert "conv feeds 2 places" in reason(report)


def test_a_way_for_other_batch_sizes_counts() -> None:
    class OnlyLarge(Branchy):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) if x.shape[0] < 9 else y

    _, report = folded(OnlyLarge(same=True), X)
    assert len(report.kept) == 1


ASKED = {
    "is a tensor": lambda x: isinstance(x, Tensor),
    "is_tensor": torch.is_tensor,
    "is no list": lambda x: not isinstance(x, (list, tuple)),
    "has no such attribute": lambda x: not hasattr(x, "features"),
    "attribute by default": lambda x: getattr(x, "features", None) is None,
    "its shape is a tuple": lambda x: isinstance(x.shape, tuple),
    "has no gradient": lambda x: x.grad is None,
    "is computed": lambda x: x.grad_fn is None,
    "one item, by length": lambda x: len(x) > 1,
    "one item, as int": lambda x: int(x.shape[0]) != 1,
    "number of items": lambda x: sum(1 for _ in x) > 1,
}


class Asks(nn.Module):
    """What it does depends on what its input is."""

    def __init__(self, asks: Callable[[Any], bool], then: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.asks, self.then = asks, then

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) if self.asks(x) is self.then else self.norm(F.relu(y))


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("then", [True, False])
@pytest.mark.parametrize("asks", ASKED.values(), ids=ASKED)
def test_what_a_traced_value_says_of_itself_is_true(
    asks: Callable[[Any], bool], then: bool, form: str
) -> None:
    model = prepared(Asks(asks, then), X)
    result = fold(model, (X,), form=form, verify=False).model
    for x in (X, X[:1], torch.cat([X, X])):
        assert error(model, result, x) < 1e-12


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize(
    "gives",
    [
        lambda y: y.sum(0) / len(y),
        lambda y: y.view(len(y), -1),
        lambda y: torch.stack([item.sum() for item in y]),
        lambda y: torch.cat([y[i : i + 1] for i in range(y.shape[0])]),
        lambda y: y + torch.zeros(tuple(y.shape), dtype=y.dtype),
        lambda y: y / torch.tensor(float(y.shape[0])),
    ],
)
def test_the_size_of_the_batch_is_not_taken_for_a_number(
    gives: Callable[[Tensor], Tensor], form: str
) -> None:
    class Gives(Asks):
        def forward(self, x: Tensor) -> Tensor:
            return gives(self.norm(self.conv(x)))

    model = prepared(Gives(bool, True), X)
    result = fold(model, (X,), form=form, verify=False)
    assert names(result.report.folded) == ["norm"]
    for x in (X, X[:1], torch.cat([X, X])):
        assert outputs(model, x)[0].shape == outputs(result.model, x)[0].shape
        assert error(model, result.model, x) < 1e-12


def test_what_surrounds_a_loop_is_an_island() -> None:
    _, report = folded(Loops(), X)
    assert names(report.folded) == ["block.1"]
    assert report.notes


def test_an_island_that_opaque_code_reaches_into_is_left_alone() -> None:
    _, report = folded(ReachesIn(), X)
    assert report.folded == []


class Outputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = chain(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, *xs: Tensor, scale: float | None = None) -> dict[str, Any]:
        y = self.block(xs[0])
        return {"a": y if scale is None else y * scale, "b": (y, [y + 1])}


def test_star_arguments_none_defaults_and_nested_outputs() -> None:
    _, report = folded(Outputs(), X)
    assert len(report.folded) == 1


def test_a_reversed_difference_is_not_taken_for_a_difference() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(torch.rsub(self.a(x), self.b(x)))

    folded(Reversed(), X)


def test_tensors_made_in_forward() -> None:
    class Makes(Keywords):
        def forward(self, x: Tensor) -> Tensor:
            place = torch.arange(4, dtype=x.dtype).view(1, -1, 1, 1)
            fixed = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).view(1, -1, 1, 1)
            return self.norm(self.conv(x * fixed)) + place

    model = Makes()
    _, report = folded(model, X)
    assert len(report.folded) == 1
    assert not any(name.startswith("_tensor_constant") for name in vars(model))
    assert len(folded(model, X, prepare=False, form="graph")[1].folded) == 1


def test_side_effects_of_a_forward_are_taken_back() -> None:
    class Caches(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            self.cache = x.mean()
            self.seen = getattr(self, "seen", 0) + 1
            return super().forward(x)

    model = Caches(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).double().eval()
    fold(model, X, verify=False)
    assert not hasattr(model, "cache")
    assert not hasattr(model, "seen")


def test_a_functional_norm_stays_in_module_form() -> None:
    class Function(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)
            self.register_buffer("m", torch.randn(4))
            self.register_buffer("v", torch.rand(4) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(self.conv(x), self.m, self.v)

    model = Function().double().eval()
    _, report = folded(model, X, prepare=False)
    assert "use form='graph'" in reason(report)
    result, report = folded(model, X, prepare=False, form="graph")
    assert len(report.folded) == 1
    assert error(model, result, X) < 1e-11
