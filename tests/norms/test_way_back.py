"""Inserting and folding again gives the weights back: every sample model, and random networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import bntool
from tests.fuzz.cases import build
from tests.norms.nets import Two
from tests.norms.way_back import weights_off
from tests.random_norms import randomise_norms
from tests.test_sample_models import NAMES, load
from tests.test_sample_models import build as sample

LIMIT = 1e-6
NETWORKS = 48
CHUNK = 12
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", NAMES)
def test_every_sample_model_gets_its_weights_back(name: str) -> None:
    torch.manual_seed(0)
    inputs = load(name).example_inputs()
    plain = bntool.fold(randomise_norms(sample(name), inputs), inputs).model
    inserted = bntool.insert(plain, inputs)
    folded = bntool.fold(inserted.model, inputs)
    assert inserted.report.inserted or name == "siamese", "whose convolutions are all shared by two calls"
    assert {e.name for e in inserted.report.inserted} <= {e.name for e in folded.report.folded}
    assert weights_off(plain, folded.model) <= LIMIT


class Tied(Two):
    """The first two convolutions hold one weight; it is read by nobody else."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.a = nn.Conv2d(4, 4, 3)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.relu(self.first(x)))


@pytest.mark.parametrize("form", ["module", "graph"])
def test_layers_with_tied_weights_get_norms_only_when_named_and_fold_back_split(form: str) -> None:
    plain, x = Tied().eval(), torch.randn(4, 3, 12, 12)
    inserted = bntool.insert(plain, x, form=form)
    assert [e.layer for e in inserted.report.inserted] == ["first"]
    assert inserted.report.left_out["a"].startswith("its weight is b's too")
    back = bntool.fold(inserted.model, x).model
    assert weights_off(plain.first, back.first) <= LIMIT
    named = bntool.insert(plain, x, include=["a", "b"], form=form)
    assert [e.layer for e in named.report.inserted] == ["a", "b"]
    assert not bntool.fold(named.model, x).report.folded
    split = bntool.fold(named.model, x, form="graph", split=True)
    assert len(split.report.folded) == 2
    inside = ".layer" if form == "module" else ""
    for name in ("a", "b"):
        assert weights_off(plain.get_submodule(name), split.model.get_submodule(name + inside)) <= LIMIT


def test_a_weight_that_a_function_reads_too_is_not_its_layers_own() -> None:
    class Read(Two):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * self.b.weight.mean()

    for form in ("module", "graph"):
        report = bntool.insert(Read().eval(), torch.randn(4, 3, 8, 8), form=form).report
        assert [e.layer for e in report.inserted] == ["a"]
        assert report.left_out["b"].startswith("its weight is mean's too")


def back_and_forth(seed: int) -> int:
    """How many norms went in and out of the random network of this seed."""
    case = build(seed)
    given = case.inputs[0].clone()
    plain = bntool.fold(case.model, case.inputs[:1]).model
    inserted = bntool.insert(plain, tuple(case.inputs[:1]), layers="all")
    folded = bntool.fold(inserted.model, tuple(case.inputs[:1]))
    assert torch.equal(given, case.inputs[0]), "a network that writes into its input writes into a copy"
    with torch.no_grad():
        pairs = zip(*(tree_leaves(m(case.inputs[0].clone())) for m in (plain, folded.model)), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-6 * float(a.abs().max())) for a, b in pairs)
    names = {e.name for e in inserted.report.inserted}
    if names and names <= {e.name for e in folded.report.folded}:
        assert weights_off(plain, folded.model) <= LIMIT
        return len(names)
    return 0


@pytest.mark.parametrize("first", range(0, NETWORKS, CHUNK))
def test_random_networks_get_their_weights_back(first: int) -> None:
    exact = [seed for seed in range(first, first + CHUNK) if build(seed).exact]
    assert sum(back_and_forth(seed) for seed in exact) > 0


def test_a_weight_that_did_not_come_back_is_noticed() -> None:
    model, other = nn.Linear(3, 4), nn.Linear(3, 4)
    other.load_state_dict(model.state_dict())
    assert weights_off(model, other) == 0
    with torch.no_grad():
        other.weight[0] *= 1.00001
    assert weights_off(model, other) > LIMIT
