"""No reason is over-strict: each has a counterexample, or it is said why there can be none."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bntool.algebra.affine import Blocked, ChannelAffine
from bntool.attempts import scale_down
from bntool.fold import fold
from bntool.graphs.base import Node
from tests.algebra.test_refusals import REFUSED, UNFORCED
from tests.folding import Block, prepared
from tests.reasons.cases import CASES, Case, into
from tests.reasons.source import reasons
from tests.reasons.table import ELSEWHERE, NONE_POSSIBLE, UP

ROOT = Path(__file__).resolve().parents[2]
X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
#: what is wrong by less than this would be rounding
WRONG = 1e-3


def test_every_reason_has_a_counterexample_or_says_why_there_is_none() -> None:
    known = {case.reason for case in CASES} | ELSEWHERE.keys() | NONE_POSSIBLE.keys()
    found = reasons()
    assert {text: file for text, file in found.items() if text not in known} == {}
    assert known - found.keys() == set()


@pytest.mark.parametrize("where", sorted(set(ELSEWHERE.values())))
def test_a_counterexample_elsewhere_is_there(where: str) -> None:
    file, _, test = where.partition("::")
    assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE)


def test_the_samples_of_the_tables_meet_what_is_said_of_them() -> None:
    met = {reason for _, _, reason in REFUSED}
    assert {reason for reason, where in ELSEWHERE.items() if where == UP} <= met - UNFORCED


def values(net: nn.Module, seen: list[Tensor]) -> list[Tensor]:
    """The outputs, and what a hook has seen."""
    seen.clear()
    with torch.no_grad():
        outputs = [v.clone() for v in tree_leaves(net(X.clone()))]
    return [*outputs, *seen]


def made(case: Case) -> tuple[nn.Module, list[Tensor]]:
    net, seen = prepared(case.net(), X), list[Tensor]()
    case.prepare(net)
    if case.seen:
        net.get_submodule(case.seen).register_forward_hook(lambda _, x, y: seen.append(y.clone()))
    return net.train(case.train), seen


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
def test_the_norm_stays_for_this_reason(case: Case) -> None:
    kept = fold(made(case)[0], X, verify=False).report.kept
    assert [entry.name for entry in kept] == ["norm"]
    assert re.search(re.escape(case.reason).replace(r"\{\}", ".*"), kept[0].reason), kept[0].reason


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
def test_folding_it_all_the_same_would_be_wrong(case: Case) -> None:
    net, seen = made(case)
    wrong = case.forced(net).train(case.train)
    right = values(net, seen)
    try:
        got = values(wrong, seen)
    except AttributeError:
        return  # the norm is not there any more for the code that reads it
    assert len(got) < len(right) or max(map(distance, right, got)) > WRONG


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


# --- counterexamples of other kinds


@pytest.mark.parametrize(("buffer", "value"), [("running_var", -1.0), ("running_mean", float("nan"))])
def test_a_damaged_norm_has_no_map(buffer: str, value: float) -> None:
    net = prepared(CASES[0].net(), X)
    getattr(net.norm, buffer)[1] = value
    m = affine_of(net.norm)
    assert not np.isfinite(m.scale).all() or not np.isfinite(m.shift).all()


def affine_of(norm: Any) -> ChannelAffine:
    """The formula, with nothing in its way."""
    scale = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
    return ChannelAffine(scale.numpy(), (norm.bias.detach() - norm.running_mean * scale).numpy())


def test_without_running_statistics_a_norm_is_no_fixed_map() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False).double().eval()
    assert distance(norm(X)[:1], norm(torch.cat([X[:1], 2 * X[1:] + 1]))[:1]) > WRONG


def test_an_instance_norm_without_running_statistics_is_no_fixed_map() -> None:
    norm = nn.InstanceNorm2d(4, affine=True).double().eval()
    assert distance(norm(X), norm(2 * X + 1)) < 1e-3  # (eps aside) it takes out what a map would do
    (kept,) = fold(nn.Sequential(nn.Conv2d(4, 4, 1), norm).double().eval(), X).report.kept
    assert kept.reason == "it normalises every sample with the sample's own statistics"


def test_leaving_the_shift_out_would_be_wrong() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.norm = nn.Parameter(torch.randn(4, 4, 1, 1)), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(F.conv2d(x, self.weight)).tanh()

    net = prepared(Functional(), X)
    (kept,) = fold(net, X).report.kept
    assert "modules alone cannot give it one" in kept.reason
    wrong = copy.deepcopy(net)
    wrong.weight.data *= torch.from_numpy(affine_of(net.norm).scale).view(-1, 1, 1, 1)
    wrong.norm = nn.Identity()
    assert distance(net(X), wrong(X)) > WRONG


def reason_without_sizes(net: Block) -> str:
    """Why the norm stays where no example inputs give any sizes."""
    (kept,) = fold(net, verify=False).report.kept
    return kept.reason


def test_without_sizes_a_shift_may_not_fit() -> None:
    """(2, 4) + (2, 4, 2, 4): what are channels to the norm are columns to the convolution."""
    layers = {"norm": nn.BatchNorm2d(4), "conv": nn.Conv2d(4, 3, 1)}
    net = prepared(Block(lambda n, x: n.conv(n.norm(x).mean((-2, -1)) + x[:, :, :2, :4]), **layers), X)
    net.norm.running_var.fill_(1 - net.norm.eps)
    net.norm.weight.data.fill_(1)
    assert "the map has fewer dimensions than its value" in reason_without_sizes(net)
    wrong = copy.deepcopy(net)
    m = affine_of(net.norm)
    into(wrong.conv, "before", m)
    wrong.norm = nn.Identity()
    assert distance(net(X), wrong(X)) > WRONG


def test_without_sizes_a_scale_may_not_fit() -> None:
    """(2, 1, 6, 6) + (2, 4, 6, 6): one channel would have to take four scales."""
    layers = {"one": nn.Conv2d(4, 1, 1), "conv": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4)}
    net = prepared(Block(lambda n, x: n.norm(n.one(x) + n.conv(x)), **layers), X)
    assert "the map's channels are not its channels" in reason_without_sizes(net)
    wrong = copy.deepcopy(net)
    into(wrong.conv, "after", affine_of(net.norm))
    wrong.norm = nn.Identity()
    assert distance(net(X), wrong(X)) > WRONG


def test_a_parameter_cannot_change_and_stay() -> None:
    """One way takes the map into `gain`, the other into `conv`, by what `gain` was."""

    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.gain = nn.Parameter(torch.rand(1, 4, 1, 1) + 0.5)

        def forward(self, x: Tensor, alone: bool = False) -> Tensor:
            return self.norm(self.gain if alone else self.conv(x) * self.gain)

    net = prepared(Either(), X)
    (kept,) = fold(net, X, verify=False).report.kept
    assert "gain would have to change and to stay as it is" in kept.reason
    wrong, m = copy.deepcopy(net), affine_of(net.norm)
    scale, shift = (torch.from_numpy(v).view(1, 4, 1, 1) for v in (m.scale, m.shift))
    wrong.gain.data = scale * net.gain.data + shift
    into(wrong.conv, "after", ChannelAffine(m.scale, m.shift / net.gain.data.view(-1).numpy()))
    wrong.norm = nn.Identity()
    assert distance(net(X, True), wrong(X, True)) < 1e-9
    assert distance(net(X), wrong(X)) > WRONG


def test_a_scale_of_zero_hides_every_shift_before_it() -> None:
    """`s * x + t = s * (x + r)` has no r where s is zero and t is not."""
    node = Node("norm", "batch_norm")
    refusal = scale_down([(node, ChannelAffine(np.zeros(1), np.ones(1)))])
    assert isinstance(refusal, Blocked)
    assert refusal.reason == "a scale of zero"
    assert all(0.0 * (x + r) != 1.0 for x in (-1.0, 2.0) for r in (0.0, 1e9))


ERASING: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "group": (nn.GroupNorm(4, 4), (3, 4)),
    "layer": (nn.LayerNorm(1), (3, 1)),
    "instance": (nn.InstanceNorm2d(4), (3, 4, 1, 1)),
    "sign is left": (nn.RMSNorm(1), (3, 1)),
}


@pytest.mark.parametrize("kind", ERASING)
def test_a_norm_over_one_value_erases_the_data(kind: str) -> None:
    norm, shape = ERASING[kind]
    x = torch.rand(shape, dtype=torch.double) + 1
    norm = norm.double()
    if kind == "instance":
        with pytest.raises(ValueError, match="more than 1 spatial element"):
            norm.train()(x)
    else:
        assert torch.allclose(norm(x), norm(7 * x), atol=1e-5)
