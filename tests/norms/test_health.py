"""Health checks: each finding on a model that has the fault, and none on a model that has not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import bntool
from bntool.errors import UsageError
from bntool.health import Finding, health
from tests.norms.nets import Two, randomized


def sound() -> nn.Sequential:
    return randomized(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()))  # type: ignore[return-value]


def images(n: int = 8) -> torch.Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def checks(model: nn.Module, x: Any = None, **options: Any) -> list[str]:
    return [f.check for f in health(model, x, **options).findings]


def only(model: nn.Module, x: Any = None, **options: Any) -> Finding:
    (finding,) = health(model, x, **options).findings
    assert finding.what
    assert finding.do
    return finding


def test_a_sound_model_has_no_findings() -> None:
    assert not checks(sound())
    assert not checks(sound(), images())


def test_a_bias_before_a_norm() -> None:
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    finding = only(model, images())
    assert (finding.check, finding.where) == ("bias-before-norm", "1")
    assert "0" in finding.what


def test_a_dropout_before_a_norm_with_the_measured_shift() -> None:
    model = randomized(
        nn.Sequential(nn.Dropout(0.5), nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    )
    finding = only(model, images())
    assert finding.check == "dropout-before-norm"
    shift = float(finding.what.split("is ")[1].split(" times")[0])
    assert 1.6 < shift < 2.4, "dropping half of zero-mean values and doubling the rest doubles the variance"
    assert only(model).check == "dropout-before-norm", "also without inputs, unmeasured"
    model[0].p = 0.01
    assert not checks(model, images())


@pytest.mark.parametrize(
    ("spoil", "check", "severity"),
    [
        (lambda n: n.running_var.__setitem__(1, 0.0), "dead-channels", "warning"),
        (lambda n: n.weight.data.__setitem__(1, 0.0), "dead-channels", "warning"),
        (lambda n: n.running_var.__setitem__(1, 1e9), "exploding-channels", "warning"),
        (lambda n: n.running_var.__setitem__(1, -0.1), "broken-statistics", "problem"),
        (lambda n: n.running_mean.__setitem__(1, float("nan")), "broken-statistics", "problem"),
        (lambda n: n.reset_running_stats(), "never-updated", "warning"),
        (lambda n: n.train(), "train-mode", "problem"),
        (lambda n: setattr(n, "momentum", 0.0), "momentum", "warning"),
        (lambda n: setattr(n, "momentum", None), "momentum", "note"),
    ],
)
def test_what_a_norms_own_state_tells(spoil: Any, check: str, severity: str) -> None:
    model = sound()
    spoil(model[1])
    finding = only(model, images())
    assert (finding.check, finding.where, finding.severity) == (check, "1", severity)


def test_a_norm_without_running_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, track_running_stats=False))
    assert only(model.eval()).check == "no-statistics"


@pytest.mark.parametrize(
    ("batch_size", "n_eff", "check", "risk"),
    [
        (1, 1, "one-value", "fails"),
        (4, 4, "small-batch", "high"),
        (16, 16, "small-batch", "noisy"),
        (64, 64, None, "none"),
    ],
)
def test_n_eff_and_its_risk(batch_size: int, n_eff: int, check: str | None, risk: str) -> None:
    model = randomized(nn.Sequential(nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4)))
    report = health(model, torch.randn(2, 6), batch_size=batch_size)
    assert [(s.name, s.n_eff, s.risk) for s in report.sizes] == [("1", n_eff, risk)]
    assert [f.check for f in report.findings] == ([check] if check else [])
    json.dumps(report.to_dict())
    assert health(sound(), images(1)).sizes[0].n_eff == 36


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    health(model, images())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# --- where a rule must stay quiet, and where it fires for what is less plain to see


class AlsoRead(nn.Module):
    """The convolution is read by the norm and by somebody else, for whom the bias counts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y


def frozen_in_training() -> nn.Module:
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).train()
    model[1].eval()
    return model


def test_a_bias_that_counts_is_not_called_useless() -> None:
    assert not checks(randomized(AlsoRead()), images())
    assert not checks(frozen_in_training(), images()), "the norm takes its own statistics, not the batch's"
    over_rows = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm2d(3))
    assert not checks(randomized(over_rows), images()), "a bias for each column, not for each channel"
    after = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    assert not checks(randomized(after), images())


class Reaching(nn.Module):
    """Two convolutions, one by function call, whose values reach a norm through what lies between."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> None:
        super().__init__()
        self.conv, self.norm, self.between = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), between
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x) + nn.functional.conv2d(x, self.weight, self.bias)
        return self.norm(self.between(y))


def effects_in_training(model: nn.Module) -> dict[str, float]:
    """How far the outputs in train mode move when a bias does."""
    model, x = copy.deepcopy(model).double().train(), images().double()
    moved = {}
    for name in ("conv.bias", "bias"):
        old = model(x)
        with torch.no_grad():
            model.get_parameter(name).add_(torch.arange(1.0, 5.0))
        moved[name] = float((model(x) - old).detach().abs().max())
    return moved


PASSED: list[Callable[[torch.Tensor], torch.Tensor]] = [
    torch.clone,
    partial(nn.functional.avg_pool2d, kernel_size=2),
    partial(nn.functional.max_pool2d, kernel_size=3, padding=1),
    partial(nn.functional.pixel_shuffle, upscale_factor=1),
    lambda y: nn.functional.interpolate(2 * y, scale_factor=2.0) - y.mean((2, 3), keepdim=True),
    lambda y: y.flip(1),
]
STOPPED: list[Callable[[torch.Tensor], torch.Tensor]] = [
    torch.relu,
    partial(nn.functional.avg_pool2d, kernel_size=3, padding=1),
    partial(nn.functional.pad, pad=(1, 1, 1, 1)),
    partial(nn.functional.dropout, p=0.5),
    lambda y: y * y,
    lambda y: y.reshape(-1, 2, 2, 6, 6).transpose(1, 3).reshape(-1, 4, 6, 6),
    lambda y: y[:, :1] * y,
]


@pytest.mark.parametrize("between", PASSED)
def test_biases_that_reach_the_norm_another_way_have_no_effect_either(between: Any) -> None:
    model = randomized(Reaching(between))
    assert max(effects_in_training(model).values()) < 1e-9
    found = health(model, images()).findings
    assert {(f.check, f.where) for f in found} == {("bias-before-norm", "norm")}
    assert sorted(f.what.split(" has")[0] for f in found) == ["bias, the bias of conv2d,", "the bias of conv"]


@pytest.mark.parametrize("between", STOPPED)
def test_biases_that_something_else_sees_first_have_an_effect(between: Any) -> None:
    model = randomized(Reaching(between))
    assert min(effects_in_training(model).values()) > 1e-3
    assert "bias-before-norm" not in checks(model, images())


def test_insert_and_inspect_agree_on_which_biases_have_no_effect() -> None:
    for form in ("module", "graph"):
        result = bntool.insert(randomized(Two()), images(), form=form)
        assert [e.bias for e in result.report.inserted] == ["dropped", "dropped"]
        assert "bias-before-norm" not in checks(result.model, images())
        kept = bntool.insert(randomized(Two()), images(), form=form, bias="keep")
        hidden = [f for f in health(kept.model, images()).findings if f.check == "bias-before-norm"]
        assert [e.name for e in kept.report.inserted] == [f.where for f in hidden]


class DropsByCall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(nn.functional.dropout(x, 0.5, self.training)))


def test_a_dropout_by_function_call_is_found_and_measured() -> None:
    finding = only(randomized(DropsByCall()), images())
    assert finding.check == "dropout-before-norm"
    assert "the dropout dropout" in finding.what
    assert 1.6 < float(finding.what.split("is ")[1].split(" times")[0]) < 2.4


def test_a_dropout_behind_the_norms_or_one_that_keeps_the_variance_is_no_matter() -> None:
    conv, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    behind = nn.Sequential(conv, norm, nn.Dropout(0.5), nn.Conv2d(4, 2, 1))
    assert not checks(randomized(behind), images())
    assert not checks(randomized(nn.Sequential(nn.AlphaDropout(0.5), conv, norm)), images(64))


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (lambda n: n.running_var.fill_(1e9), "exploding-channels"),
        (lambda n: n.running_mean.__setitem__(1, 1e6), "exploding-channels"),
        (lambda n: n.weight.data.__setitem__(1, float("nan")), "broken-parameters"),
        (lambda n: n.bias.data.__setitem__(1, float("inf")), "broken-parameters"),
        (lambda n: setattr(n, "track_running_stats", False), "not-tracked"),
    ],
)
def test_what_is_less_plain_to_see(spoil: Any, check: str) -> None:
    model = sound()
    spoil(model[1])
    assert only(model, images()).check == check


def test_statistics_that_do_not_move_are_just_that() -> None:
    """With running statistics and track_running_stats off, torch trains on the batch and updates nothing."""
    model = sound()
    model[1].track_running_stats = False
    before = model[1].running_mean.clone()
    model.train()(images())
    assert torch.equal(model[1].running_mean, before)


def test_lazy_parts_are_looked_at_with_the_sizes_the_inputs_give() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Conv2d(4, 2, 1))
    found = bntool.inspect(model, images())
    assert found.size.parameters == 3 * 4 * 9 + 4 + 2 * 4 + 4 * 2 + 2
    assert [f.check for f in found.health.findings] == ["never-updated", "bias-before-norm"]
    assert isinstance(model[0].weight, nn.UninitializedParameter)
    for look in (bntool.inspect, health):
        with pytest.raises(UsageError, match="lazy"):
            look(model)
