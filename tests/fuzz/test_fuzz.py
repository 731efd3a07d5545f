"""Hundreds of random networks, and proof that the oracle notices a wrong or a lazy fold. See `make fuzz`."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from tests.fuzz.campaign import bntool_fold, graph_complaints, reproducer
from tests.fuzz.cases import Case, build
from tests.fuzz.judge import norms_left
from tests.fuzz.networks import FUNCTIONS, Net, Step
from tests.fuzz.oracle import complaints

NETWORKS = 240
GRAPHS = 80
CHUNK = 20
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("first", range(0, NETWORKS, CHUNK))
def test_random_networks_fold_exactly_and_completely(first: int) -> None:
    for seed in range(first, first + CHUNK):
        case = build(seed)
        found = complaints(case, bntool_fold)
        assert not found, reproducer(case, found)


@pytest.mark.parametrize("first", range(0, GRAPHS, CHUNK))
def test_random_networks_fold_exactly_as_graphs_too(first: int) -> None:
    for seed in range(first, first + CHUNK):
        case = build(seed)
        found = graph_complaints(case)
        assert not found, reproducer(case, found)


def plain_case() -> Case:
    """conv -> norm -> relu -> linear -> norm, as small as they come."""
    torch.manual_seed(0)
    net = Net()
    net.conv, net.norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
    net.linear, net.last = nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4)
    for norm in (net.norm, net.last):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    net.steps = [
        Step("conv", (0,), "conv"),
        Step("norm", (1,), "norm"),
        Step("relu", (2,)),
        Step("mean", (3,), args={"dims": (2, 3)}),
        Step("linear", (4,), "linear"),
        Step("norm", (5,), "last"),
    ]
    net.outputs = [6]
    x = torch.randn(3, 2, 5, 5, dtype=torch.double)
    return Case(0, net.double().eval(), [x, -x[:2]], torch.float64)


def by_hand(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """The right answer for the plain case."""
    model = copy.deepcopy(model)
    for layer, name in ((model.conv, "norm"), (model.linear, "last")):
        norm = model.get_submodule(name)
        if isinstance(norm, nn.Identity):
            continue
        scale = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
        bias = 0 if layer.bias is None else layer.bias.detach()
        weight = layer.weight.detach()
        layer.weight = nn.Parameter(weight * scale.view(-1, *(1,) * (weight.ndim - 1)))
        layer.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias.detach())
        setattr(model, name, nn.Identity())
    return model


def damaged(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    model = by_hand(model, inputs)
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] *= 1.01
    return model


def in_place(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    with torch.no_grad():
        model.conv.weight.mul_(1.5)
    return by_hand(model, inputs)


def lazy(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    return copy.deepcopy(model)


def crashing(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    raise KeyError("conv")


def never_done(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Folds one norm a call."""
    folded = by_hand(model, inputs)
    if len(norms_left(model)) == 2:
        folded.conv, folded.norm = copy.deepcopy(model.conv), copy.deepcopy(model.norm)
    return folded


def test_the_oracle_accepts_a_right_fold() -> None:
    assert complaints(plain_case(), by_hand) == []


@pytest.mark.parametrize(
    ("fold", "complaint"),
    [
        (damaged, "outputs differ"),
        (in_place, "the model passed in was changed: tensor conv.weight"),
        (lazy, "norm is left but folds into conv"),
        (crashing, "crashed: KeyError"),
        (never_done, "a second fold finds more"),
    ],
)
def test_the_oracle_notices(fold: object, complaint: str) -> None:
    found = complaints(plain_case(), fold)  # type: ignore[arg-type]
    assert any(text.startswith(complaint) for text in found), found


def torch_fuse(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    return fuse(model)


def test_the_oracle_finds_the_known_errors_of_torch_fuse() -> None:
    wrong = Counter(
        text.split(":")[0][:14]
        for s in range(180)
        for text in complaints(build(s), torch_fuse, thorough=False)
    )
    assert wrong["outputs differ"] >= 3, wrong


def test_a_seed_gives_the_same_network_every_time() -> None:
    for seed in range(10):
        a, b = build(seed).model, build(seed).model
        assert a.describe() == b.describe()
        assert all(
            torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
        )


def test_the_networks_use_every_kind_of_step() -> None:
    cases = [build(seed) for seed in range(400)]
    used = {step.op for c in cases for m in c.model.modules() if isinstance(m, Net) for step in m.steps}
    assert used >= FUNCTIONS.keys() | {"conv", "conv_transpose", "linear", "norm", "module"}
    assert {c.dtype for c in cases} == {torch.float64, torch.float32, torch.bfloat16, torch.float16}
