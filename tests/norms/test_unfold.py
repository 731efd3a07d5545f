"""Un-folding: a folded network gets its norms back, where they were, with the keys it had."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

import bntool
from bntool.edits import plan_of
from sample_models.mobilenet import mobilenet
from sample_models.preact_resnet import preact_resnet
from sample_models.resnet import resnet
from sample_models.unet import unet
from sample_models.video3d import video3d
from tests.norms.nets import Two, randomized
from tests.norms.way_back import weights_off

SHAPES = {resnet: (4, 1, 8, 8), mobilenet: (2, 3, 32, 32), unet: (2, 3, 32, 32), video3d: (2, 3, 4, 16, 16)}


@pytest.mark.parametrize("factory", SHAPES)
def test_norms_come_back_where_they_were(factory: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = randomized(factory()), torch.randn(SHAPES[factory])
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    folded = bntool.fold(model, x)
    assert len(folded.report.folded) == norms
    result = bntool.unfold(folded.model, x)
    assert len(result.report.inserted) == norms
    assert result.report.eval.max_rel_error < 1e-5
    assert set(result.model.state_dict()) == set(model.state_dict())
    factory().load_state_dict(result.model.state_dict())
    assert torch.allclose(result.model(x), model(x), atol=1e-4 * float(model(x).detach().abs().max()))
    result.model.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in result.model.parameters())


def test_the_plan_of_both_edits_applies_to_a_fresh_model() -> None:
    model, x = randomized(resnet()), torch.randn(4, 1, 8, 8)
    made = bntool.unfold(bntool.fold(model, x).model, x).model
    again = bntool.apply_plan(resnet(), json.loads(json.dumps(plan_of(made))))
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.eval()(x), made(x))


class Shortcut(nn.Module):
    """An Identity of the model's own, which never was a norm, and a squeeze-and-excite gate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.gate = nn.Conv2d(4, 4, 1)
        self.plain, self.drop_path = nn.Conv2d(4, 4, 1), nn.Identity()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.head(torch.relu(self.drop_path(self.plain(x))).mean((2, 3)))


def test_an_identity_of_the_models_own_and_a_gate_stay_without() -> None:
    model, x = randomized(Shortcut()), torch.randn(2, 3, 8, 8)
    result = bntool.unfold(bntool.fold(model, x).model, x)
    assert [e.name for e in result.report.inserted] == ["bn"]
    assert "gate" in result.report.left_out["gate"]
    assert result.report.left_out["plain"] == "no norm was folded away here"


def test_identities_of_a_network_that_never_had_norms_are_its_own() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
            self.drop_path, self.head = nn.Identity(), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x))))))
            return self.head(x.mean((2, 3)))

    class OneIdentity(Own):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.b(torch.relu(self.drop_path(self.a(x)))))
            return self.head(torch.relu(self.c(x)).mean((2, 3)))

    for model in (Own(), OneIdentity()):
        report = bntool.unfold(model.eval(), torch.randn(2, 3, 8, 8)).report
        assert [e.layer for e in report.inserted] == ["a", "b", "c"]


def test_a_network_that_never_had_norms_gets_one_behind_every_convolution() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)
    ).eval()
    report = bntool.unfold(model, torch.randn(2, 3, 8, 8)).report
    assert [e.layer for e in report.inserted] == ["0", "2"]


def test_a_shared_layer_gets_its_shared_norm_back() -> None:
    from sample_models.siamese import siamese

    model = randomized(siamese())
    x = (torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32))
    result = bntool.unfold(bntool.fold(model, x).model, x)
    assert len(result.report.inserted) == 3
    assert result.report.eval.max_rel_error < 1e-5


class Flattened(nn.Module):
    """As LeViT: a linear over tokens, whose norm reads them as one long batch; a norm ahead of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear, self.bn = nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.last, self.drop, self.head = nn.BatchNorm1d(6), nn.Dropout(0.1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(self.embed(x).flatten(2).transpose(1, 2))
        x = torch.relu(self.bn(x.flatten(0, 1)).reshape_as(x))
        return self.head(self.drop(self.last(x.mean(1))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_come_back_behind_a_flatten_and_ahead_of_a_layer(dtype: torch.dtype) -> None:
    model, x = randomized(Flattened()).to(dtype), torch.randn(6, 3, 8, 8, dtype=dtype)
    folded = bntool.fold(model, x)
    assert {e.name: e.side for e in folded.report.folded} == {"bn": "after", "last": "before"}
    result = bntool.unfold(folded.model, x)
    assert sorted(e.name for e in result.report.inserted) == ["bn", "last"]
    assert {k: v.dtype for k, v in result.model.state_dict().items() if "num" not in k} == {
        k: v.dtype for k, v in model.state_dict().items() if "num" not in k
    }
    assert torch.allclose(result.model(x), model(x), atol=1e-5)
    assert [e.name for e in bntool.unfold(folded.model, x, exclude=["last"]).report.inserted] == ["bn"]
    again = bntool.apply_plan(Flattened().to(dtype), json.loads(json.dumps(plan_of(result.model))))
    again.load_state_dict(result.model.state_dict())
    assert torch.equal(again.eval()(x), result.model(x))


class ActNorm(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: the dropout and the activation are the norm's own."""

    def __init__(self, channels: int, drop: nn.Module | None = None) -> None:
        super().__init__(channels)
        self.drop, self.act = drop or nn.Identity(), nn.LeakyReLU(0.3, inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


class Activated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn1 = nn.Conv2d(3, 4, 3, bias=False), ActNorm(4)
        self.b, self.bn2 = nn.Conv2d(4, 5, 3), ActNorm(5, nn.Dropout(0.2))
        self.bn3, self.head = nn.BatchNorm2d(5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.b(self.bn1(self.a(x))))
        return self.head(self.bn3(x).mean((2, 3)))


def test_norms_with_activations_of_their_own_come_back_with_their_keys() -> None:
    model, x = randomized(Activated()), torch.randn(6, 3, 8, 8)
    folded = bntool.fold(model, x).model
    result = bntool.unfold(folded, x)
    assert sorted(e.name for e in result.report.inserted) == ["bn1", "bn2", "bn3"]
    assert torch.allclose(result.model(x), model(x), atol=1e-5)
    assert result.model.bn2.drop.p == 0.2
    back = Activated().eval()
    back.load_state_dict(result.model.state_dict())
    assert torch.allclose(back(x), model(x), atol=1e-5)
    again = bntool.apply_plan(Activated(), json.loads(json.dumps(plan_of(result.model)))).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))
    once_more = bntool.fold(result.model, x)
    assert [e.name for e in once_more.report.folded] == ["bn1", "bn2", "bn3"]
    assert weights_off(folded, once_more.model) <= 1e-6
    result.model.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in result.model.parameters())


def test_an_activation_that_two_norms_shared_takes_neither_back() -> None:
    model, x = randomized(Activated()), torch.randn(6, 3, 8, 8)
    model.bn2.drop, model.bn2.act = nn.Identity(), model.bn1.act
    result = bntool.unfold(bntool.fold(model, x).model, x)
    assert sorted(e.name for e in result.report.inserted) == ["a.norm", "bn3"]
    assert torch.allclose(result.model(x), model(x), atol=1e-5)


def test_a_norm_behind_an_addition_comes_back_once() -> None:
    """Folding put it into both branches, and gave them biases."""
    model, x = randomized(preact_resnet()), torch.randn(4, 3, 32, 32)
    folded = bntool.fold(model, x)
    result = bntool.unfold(folded.model, x)
    assert {e.name for e in result.report.inserted} == {e.name for e in folded.report.folded}
    assert torch.allclose(result.model(x), model(x), atol=1e-4 * float(model(x).detach().abs().max()))


def test_norms_that_were_put_in_and_folded_away_are_put_in_again() -> None:
    """Their places went with them: the layers stand where they stood at first."""

    model, x = Two().eval(), torch.randn(4, 3, 8, 8)
    folded = bntool.fold(bntool.insert(model, x).model, x).model
    again = bntool.unfold(folded, x)
    assert [e.name for e in again.report.inserted] == ["a.norm", "b.norm"]
    assert torch.allclose(again.model(x), model(x), atol=1e-5)
