"""Evidence for a larger tolerance: a model that amplifies rounding, and a wrong one that must not profit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from bntool import fold, verify
from bntool.errors import VerificationError
from tests.random_norms import randomise_norms


class Amplifier(nn.Module):
    """Subtracts two nearly equal sums: what is left of them is mostly their rounding, made large."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        self.b.weight.data = self.a.weight.data + 1e-6 * torch.randn(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) - self.b(x)


def reordered(model: Amplifier) -> nn.Module:
    """The same function with its weights scaled and unscaled: equal but for rounding."""

    class Scaled(Amplifier):
        def forward(self, x: Tensor) -> Tensor:
            return (self.a(x * 3) - self.b(x * 3)) / 3

    other = Scaled()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    return other


def test_a_model_that_amplifies_rounding_verifies_with_the_evidence() -> None:
    model, x = Amplifier().double(), torch.randn(8, 64, dtype=torch.double)
    found = verify(model, reordered(model).double(), x)
    assert found.ok
    assert any("amplifies rounding" in note for note in found.notes)


def test_a_wrong_model_does_not_profit() -> None:
    model, x = Amplifier().double(), torch.randn(8, 64, dtype=torch.double)
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong.b.weight[3, 5] *= 1.01
    assert not verify(model, wrong, x).ok


def test_a_given_tolerance_is_kept() -> None:
    model, x = Amplifier().double(), torch.randn(8, 64, dtype=torch.double)
    assert not verify(model, reordered(model).double(), x, tolerance=1e-16).ok


def test_a_model_whose_outputs_are_rounding_cannot_be_compared() -> None:
    """All that an instance norm of one value over and over gives is the rounding of its mean."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Upsample((5, 3)), nn.InstanceNorm2d(4)]
    x = torch.randn(8, 3, 1, 1)
    model = randomise_norms(nn.Sequential(*layers).eval(), (x,))
    with pytest.raises(VerificationError) as refused:
        fold(model, x)
    assert "which tells nothing" in str(refused.value)
    assert "--keep" not in str(refused.value)
    assert len(fold(model, x, verify=False).report.folded) == 1


def test_random_outputs_are_no_rounding() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    found = verify(Noisy(), Noisy(), torch.randn(8, 64))
    assert not found.ok
    assert "the reference does not give the same twice" in found.notes
