"""Norms in code that cannot be traced: the way of the example inputs is what is known of it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bntool
from tests.norms.nets import randomized
from tests.norms.way_back import weights_off

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")


class Untraced(nn.Module):
    """Layers called by control flow on values, which no tracer follows."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.normed, self.bn = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.dropped, self.twice, self.never = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.act, self.items = nn.ReLU(), nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(2))
        self.mix, self.out, self.aux = nn.Parameter(torch.randn(4, 5)), nn.Linear(5, 2), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.plain(x))
        if float(x.mean()) > 100:
            x = self.never(x)
        x = F.dropout(self.bn(self.normed(x)).relu(), 0.3, self.training)
        x = self.twice(self.twice(self.dropped(x)))
        for item in self.items:
            x = self.act(item(x))
        aux: Tensor = self.aux(x)
        return self.out(x.mean((2, 3)) @ self.mix), aux


class Named(Untraced):
    """The same, but its code gets at its layers by name."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert "conv" not in [name for name, _ in self.named_modules()]
        return super().forward(x)


def images() -> Tensor:
    return torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def test_norms_go_behind_layers_that_untraceable_code_calls_once() -> None:
    model, x = randomized(Untraced()), images()
    result = bntool.insert(model, x)
    assert [e.name for e in result.report.inserted] == ["plain.norm", "items.0.norm", "items.1.norm"]
    reasons = result.report.left_out
    assert reasons["normed"] == "already normalised by bn"
    assert reasons["dropped"].startswith("after the dropout dropout")
    assert reasons["twice"].startswith("shared: called 2 times")
    assert reasons["never"] == "the example inputs do not reach it"
    assert reasons["aux"] == "the output layer: no layer comes after it"
    assert result.report.eval.max_rel_error < 1e-5
    folded = bntool.fold(result.model, x)
    assert [e.name for e in folded.report.folded] == [e.name for e in result.report.inserted]
    assert weights_off(model, folded.model) <= 1e-6
    again = bntool.apply_plan(Untraced(), json.loads(json.dumps(result.report.plan)))
    again.load_state_dict(model.state_dict())
    assert torch.allclose(again.eval()(x)[0], model(x)[0], atol=1e-5)


def test_code_that_may_do_more_than_call_a_layer_keeps_it_as_it_is() -> None:
    report = bntool.insert(randomized(Named()), images()).report
    assert not report.inserted
    assert report.left_out["plain"] == "code that cannot be traced runs it, and may do more with it than that"
    assert report.left_out["normed"] == "already normalised by bn"


def test_behind_the_activation_only_where_that_is_a_module_called_once() -> None:
    report = bntool.insert(randomized(Untraced()), images(), where="after-activation").report
    assert not report.inserted
    assert report.left_out["plain"] == "its activation is a call of relu"
    assert report.left_out["items.0"] == "its activation act is called several times"
