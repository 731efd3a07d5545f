"""Graph form: functional calls fold, branches merge, shared layers split on request; the outputs stay."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bntool import fold
from bntool.errors import UsageError
from bntool.norms.value_pad import ValuePad
from bntool.result import FoldReport
from sample_models import branchy, repvgg, resnet, siamese
from tests.random_norms import randomise_norms

NORM = nn.modules.batchnorm._NormBase


def count(model: nn.Module, kinds: type | tuple[type, ...]) -> int:
    """Distinct modules of these kinds."""
    return len({m for m in model.modules() if isinstance(m, kinds)})


def folded(model: nn.Module, *inputs: Tensor, **options: bool) -> tuple[nn.Module, FoldReport]:
    """Graph form in float64; asserts that neither the outputs nor the model passed in have changed."""
    model, inputs = model.double().eval(), tuple(x.double() for x in inputs)
    randomise_norms(model, inputs)
    before = copy.deepcopy(model.state_dict())
    result = fold(model, inputs, form="graph", **options)
    bigger = [torch.cat([x, -2 * x]) for x in inputs]
    for values in (inputs, bigger):
        torch.testing.assert_close(result.model(*values), model(*values), rtol=1e-10, atol=1e-10)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    return result.model, result.report


class Functional(nn.Module):
    """Convolution, linear and norms as function calls on the module's own parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 3, 3, 3))
        self.matrix = nn.Parameter(torch.randn(5, 6))
        self.gamma, self.beta = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.randn(6))
        self.register_buffer("mean", torch.randn(6))
        self.register_buffer("var", torch.rand(6) + 0.5)
        self.register_buffer("mean_out", torch.randn(5))
        self.register_buffer("var_out", torch.rand(5) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernel, padding=1, stride=2)
        x = F.batch_norm(x, self.mean, self.var, self.gamma, bias=self.beta, eps=1e-2)
        x = F.linear(x.relu().mean((2, 3)), weight=self.matrix)
        return F.batch_norm(input=x, running_mean=self.mean_out, running_var=self.var_out)


class Heads(nn.Module):
    """One convolution for two levels of a pyramid, each with a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.norms[0](self.conv(x)), self.norms[1](self.conv(F.avg_pool2d(x, 2)))


def test_functional_calls_fold() -> None:
    model, report = folded(Functional(), torch.randn(2, 3, 8, 8))
    assert isinstance(model, fx.GraphModule)
    assert (len(report.folded), report.kept) == (2, [])
    assert "batch_norm" not in model.code


def test_folded_norms_leave_no_trace_in_the_graph() -> None:
    model, report = folded(resnet.resnet(), *resnet.example_inputs())
    assert count(model, (NORM, nn.Identity)) == 0
    assert len(report.folded) == report.found == 9


def test_it_is_said_that_a_graph_keeps_its_dropouts_off() -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)]
    _, report = folded(nn.Sequential(*layers), torch.randn(2, 3, 8, 8))
    assert any("dropouts stay off" in note for note in report.notes)
    _, report = folded(nn.Sequential(*layers[:2]), torch.randn(2, 3, 8, 8))
    assert report.notes == []


def test_a_shared_layer_keeps_its_norms_unless_split() -> None:
    x = torch.randn(2, 3, 8, 8)
    model, report = folded(Heads(), x)
    assert (count(model, nn.Conv2d), len(report.kept)) == (1, 2)
    assert "called 2 times" in report.kept[0].reason
    model, report = folded(Heads(), x, split=True)
    assert (count(model, nn.Conv2d), report.kept) == (2, [])


def test_layers_whose_calls_all_agree_are_shared_again_after_a_split() -> None:
    model, report = folded(siamese.siamese(), *siamese.example_inputs(), split=True)
    assert report.kept == []
    assert count(model, nn.Conv2d) == 2


class Tied(nn.Module):
    """Two layers that hold one weight, each with its norm."""

    def __init__(self, *, same: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norm_a = nn.BatchNorm2d(3)
        self.norm_b = self.norm_a if same else nn.BatchNorm2d(3)
        self.b.weight, self.b.bias = self.a.weight, self.a.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.norm_b(self.b(torch.relu(self.norm_a(self.a(x)))))


def test_tied_weights_keep_their_norms_unless_split() -> None:
    x = torch.randn(2, 3, 8, 8)
    model, report = folded(Tied(), x)
    assert model.a.weight is model.b.weight
    assert "a shares its parameters with b" in report.kept[0].reason
    model, report = folded(Tied(), x, split=True)
    assert report.kept == []
    assert model.a.weight is not model.b.weight


def test_tied_weights_whose_norms_agree_are_tied_again_after_a_split() -> None:
    model, report = folded(Tied(same=True), torch.randn(2, 3, 8, 8), split=True)
    assert report.kept == []
    assert model.a.weight is model.b.weight


class Reused(nn.Module):
    """A layer called twice, one of its calls part of a chain that merges away."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x).relu()
        return self.last(self.shared(y)), self.shared(y)


def test_a_copy_may_merge_away_while_the_other_stays() -> None:
    model, _ = folded(Reused(), torch.randn(3, 4), merge=True, split=True)
    assert count(model, nn.Linear) == 3
    again = fold(model, (torch.randn(3, 4).double(),), form="graph", merge=True, split=True).model
    assert count(again, nn.Linear) == 3


@pytest.mark.parametrize("middle", [nn.Dropout, nn.ReLU, nn.Sigmoid])
def test_hooks_survive(middle: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), middle(), nn.Conv2d(4, 2, 1))
    model[2].register_forward_hook(lambda module, args, output: output * 2 + 1)
    folded(model, torch.randn(2, 3, 5, 5), merge=True)


def test_merged_norms_are_in_the_report() -> None:
    model, report = folded(repvgg.repvgg(), *repvgg.example_inputs(), merge=True)
    assert count(model, nn.Conv2d) == 6
    assert report.found == len(report.folded) == 15
    assert {entry.side for entry in report.folded} == {"merged"}
    assert report.folded[-1].into == "stages.0.merged"


def test_kept_norms_are_not_merged() -> None:
    model = repvgg.repvgg().eval()
    result = fold(model, repvgg.example_inputs(), form="graph", merge=True, keep=["stages.5.norm0"])
    assert [entry.name for entry in result.report.kept] == ["stages.5.norm0"]


def test_a_model_that_cannot_be_traced_whole_stays_a_module_and_says_so() -> None:
    model = branchy.branchy().eval()
    result = fold(model, branchy.example_inputs(), form="graph", merge=True)
    assert len(result.report.folded) == 5
    assert any("several ways" in note or "traced" in note for note in result.report.notes)


@pytest.mark.parametrize("option", ["merge", "split"])
def test_modules_alone_can_neither_merge_nor_split(option: str) -> None:
    with pytest.raises(UsageError, match="form='graph'"):
        fold(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), **{option: True})


# --- zero padding, moved on request


def behind_relu(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), *layers)


class TwoReaders(nn.Module):
    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.norm, self.one, self.other = nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3, padding=1), other

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.sin())
        return self.one(y) + self.other(y).mean()


PADDED = {
    "conv": behind_relu(nn.Conv2d(4, 5, 3, padding=1)),
    "same": behind_relu(nn.Conv2d(4, 5, 4, padding="same")),
    "depthwise, strided": behind_relu(nn.Conv2d(4, 4, 3, 2, (2, 1), groups=4, bias=False)),
    "two convolutions": TwoReaders(nn.Conv2d(3, 2, 5, padding=1)),
}


@pytest.mark.parametrize("name", PADDED)
def test_padding_with_other_values_lets_a_norm_pass(name: str) -> None:
    x = torch.randn(2, 3, 7, 9)
    _, without = folded(copy.deepcopy(PADDED[name]), x)
    assert "its zero padding would need the shift too; --pad-values may pad" in without.kept[0].reason
    result, report = folded(copy.deepcopy(PADDED[name]), x, pad_values=True)
    assert report.kept == []
    assert count(result, NORM) == 0
    assert [report.folded[0].name in note for note in report.notes] == [True]
    assert count(result, ValuePad) == 1


def test_one_value_for_all_channels_is_torchs_own_padding() -> None:
    model = behind_relu(nn.Conv2d(4, 5, 3, padding=1)).double().eval()
    model[2].running_mean.fill_(0.3)
    result = fold(model, torch.randn(2, 3, 7, 9).double(), form="graph", pad_values=True).model
    assert count(result, (ValuePad, NORM)) == 0
    assert count(result, nn.ConstantPad2d) == 1


@pytest.mark.parametrize("other", [nn.Conv2d(3, 2, 5, padding=2), nn.Identity()])
def test_padding_stays_where_not_all_readers_pad_alike(other: nn.Module) -> None:
    _, report = folded(TwoReaders(other), torch.randn(2, 3, 7, 9), pad_values=True)
    assert len(report.kept) == 1
    assert report.notes == []


def test_a_channel_without_scale_has_no_value_that_becomes_zero() -> None:
    model = behind_relu(nn.Conv2d(4, 5, 3, padding=1)).double().eval()
    model[2].weight.data[1], model[2].bias.data[1] = 0, 1
    report = fold(model, torch.randn(2, 3, 7, 9).double(), form="graph", pad_values=True).report
    assert len(report.kept) == 1


def test_modules_alone_cannot_move_padding() -> None:
    with pytest.raises(UsageError, match="modules alone cannot express it"):
        fold(behind_relu(), torch.randn(2, 3, 7, 9), pad_values=True)
