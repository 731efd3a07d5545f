"""Models in wrappers, with state of their own, with masks: what a user's model may be beyond layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from torch.optim.swa_utils import AveragedModel

from bntool import calibrate, fold, fold_, insert, inspect, verify
from bntool.errors import UsageError
from tests.folding import Block, error, folded, names, outputs, prepared, reason
from tests.random_norms import randomise_norms, scramble

IMAGE = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TOKENS = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def block() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel])
def test_a_wrapper_is_seen_through(wrap: type[nn.Module]) -> None:
    result, report = folded(wrap(block()), IMAGE)
    assert type(result) is wrap
    assert names(report.folded) == ["module.1"]


def test_what_has_been_compiled_says_so() -> None:
    model = torch.compile(block().eval().double(), backend="eager")
    assert "then compile" in reason(fold(model, IMAGE, verify=False).report)
    within = nn.Sequential(model, nn.ReLU())
    assert "then compile" in reason(fold(within, IMAGE, verify=False).report)


def test_a_compiled_part_of_a_model_that_is_merged_runs() -> None:
    torch.manual_seed(0)
    part = prepared(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), torch.randn(2, 4, 5, 5).double())
    first = prepared(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), IMAGE)
    model = nn.Sequential(first, torch.compile(part, backend="eager")).eval()
    result = fold(model, IMAGE, form="graph", merge=True, verify=False)
    assert [entry.name for entry in result.report.folded] == ["0.1"]
    assert error(model, result.model, IMAGE) < 1e-12


def test_a_script_is_refused_in_words() -> None:
    script = torch.jit.script(block().eval())
    for verb in (fold, fold_, insert, inspect, calibrate):
        with pytest.raises(UsageError, match="ScriptModule cannot be looked into"):
            verb(script, IMAGE)
        with pytest.raises(UsageError, match="1: a ScriptModule cannot be looked into"):
            verb(nn.Sequential(nn.ReLU(), script), IMAGE)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(x, x, self.value(x), attn_mask=mask)
        return self.norm(y.transpose(1, 2))


def test_a_row_that_a_mask_hides_takes_no_shift() -> None:
    """Folded as where rows sum to one, the hidden rows would be off: their sum is zero."""
    mask = torch.ones(2, 5, 5, dtype=torch.bool)
    mask[:, 0] = False
    model = prepared(Attention(), TOKENS, mask)
    assert "may hide a whole row" in reason(folded(model, TOKENS, mask, prepare=False)[1])
    linear = nn.Sequential(model.value, nn.Flatten(0, 1), model.norm)
    wrong = Attention().double().eval()
    wrong.value, wrong.norm = fold(linear, TOKENS).model[0], nn.Identity()  # type: ignore[assignment]
    assert error(model, wrong, TOKENS, mask) > 0.01
    assert error(model, wrong, TOKENS, torch.ones_like(mask)) < 1e-12


class Alternates(nn.Module):
    """Counts its calls, which either decides what it does or does not."""

    def __init__(self, period: int) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.calls, self.period, self.seen = 0, period, 1.0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.conv(x)
        self.seen = x.mean()
        return self.norm(y) if self.calls % self.period else self.other(y)


def test_a_forward_that_goes_another_way_at_every_call_is_not_believed() -> None:
    model = prepared(Alternates(period=2), IMAGE)
    result, report = folded(model, IMAGE, prepare=False)
    assert any("another way when it is called again" in note for note in report.notes)
    for _ in range(2):
        assert error(model, result, IMAGE) < 1e-12
    assert names(folded(Alternates(period=1000), IMAGE)[1].folded) == ["norm"]


class Switches(nn.Module):
    """Its first half runs under another mode of torch than the second."""

    def __init__(self, mode: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.first, self.second, self.mode = (
            block(),
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
            mode,
        )

    def forward(self, x: Tensor) -> Tensor:
        with self.mode():
            y = self.first(x)
        return self.second(y.float())


def low() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("mode", [low, torch.no_grad])
def test_a_mode_that_a_forward_switches_is_not_lost_in_a_graph(mode: Any) -> None:
    x = IMAGE.float()
    model = randomise_norms(Switches(mode).eval(), (x,))
    for form in ("module", "graph"):
        result = fold(model, x, form=form)
        assert len(result.report.folded) == 2
        result.model(x).sum().backward()
        assert (result.model.first[0].weight.grad is None) == (mode is torch.no_grad)
        assert result.model.first(x).dtype == model.first(x).dtype
    with pytest.raises(UsageError, match="traced whole"):
        insert(model, x, form="graph")


def test_rounding_of_autocast_is_not_blamed_on_a_norm() -> None:
    x = IMAGE.float()
    found = fold(randomise_norms(Switches(low).eval(), (x,)), x).report.verification
    assert found is not None
    assert found.ok
    assert any("amplifies rounding" in note for note in found.notes)
    damaged = randomise_norms(Switches(low).eval(), (x,))
    fine = fold(damaged, x, verify=False).model
    with torch.no_grad():
        fine.first[0].weight.mul_(1.5)
    assert not verify(damaged, fine, x).ok


class Remembers(nn.Module):
    """Adds what it keeps of one call to what the next one gives."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.where, self.last, self.values = where, None, []
        self.register_buffer("buffer", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        out = self.norm(y)
        if self.where == "attribute":
            out, self.last = out if self.last is None else out + self.last, y
        elif self.where == "buffer":
            out, self.buffer = out + self.buffer, y
        elif self.where == "list":
            self.values.append(y)
            out = sum(self.values[:-1], out)
        else:
            self.last = y
        return out


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("where", ["attribute", "buffer", "list", "never read"])
def test_what_a_forward_keeps_for_later_is_what_it_was(where: str, form: str) -> None:
    def twice(model: nn.Module) -> list[Tensor]:
        values = [*outputs(model, IMAGE), *outputs(model, 2 * IMAGE)]
        return values if model.last is None else [*values, model.last]

    model = Remembers(where).eval().double()
    scramble(model.norm, torch.randn(2, 4, 3, 3), torch.Generator().manual_seed(0))
    result = fold(model, (IMAGE,), form=form, verify=False).model
    for want, got in zip(twice(model), twice(result), strict=True):
        assert torch.allclose(want, got, atol=1e-12)


class Decaying(nn.Module):
    """Every call puts another tensor in the place of its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = block()
        self.register_buffer("gain", torch.rand(4, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.gain = self.gain * 1.5
        return self.norm(self.conv(x) * self.gain)


@pytest.mark.parametrize("form", ["module", "graph"])
def test_a_buffer_that_every_call_replaces_is_no_constant(form: str) -> None:
    model = prepared(Decaying(), IMAGE)
    result = fold(model, IMAGE, form=form, verify=False)
    assert "a shift cannot pass a product" in reason(result.report)
    for _ in range(3):
        assert error(model, result.model, IMAGE) == 0


@pytest.mark.parametrize("form", ["module", "graph"])
def test_hooks_of_the_model_itself_stay(form: str) -> None:
    model = prepared(block(), IMAGE)
    model.register_forward_hook(lambda module, inputs, output: output + 1)
    result = fold(model, IMAGE, form=form)
    assert names(result.report.folded) == ["1"]


def test_one_of_several_values_is_named_by_what_gives_them() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.norm = nn.MultiheadAttention(4, 2, batch_first=True), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.attention(x, x, x)[0].transpose(1, 2))

    assert "MultiheadAttention takes no map" in reason(folded(Block(), TOKENS)[1])


class Rebinds(nn.Module):
    """Adds what the call before left in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = block()
        self.register_buffer("last", torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        result = y + self.last
        self.last = y.mean().reshape(1)
        return result


def test_merging_neither_moves_a_buffer_nor_forgets_that_it_moves() -> None:
    model = prepared(Rebinds(), IMAGE)
    model.last.zero_()
    original = copy.deepcopy(model)
    merged = fold(model, IMAGE, form="graph", merge=True, verify=False).model
    for _ in range(3):
        assert error(original, merged, IMAGE) < 1e-12


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class Parametrized(nn.Conv2d):
    """A layer that parametrizes itself, as one with a constraint on its weight does."""

    limit: float

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.limit = 1.0
        register_parametrization(self, "weight", Halved())

    def norms(self) -> Tensor:
        return self.weight.flatten(1).norm(dim=1)


class WithOwnForward(Parametrized):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class WithOwnConvolution(Parametrized):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight, bias) * x.mean()


class WithOwnBias(Parametrized):
    @property
    def bias(self) -> Tensor:  # type: ignore[override]
        return self.limit * torch.arange(4.0, dtype=torch.float64)

    @bias.setter
    def bias(self, _: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("kind", "goes"),
    [(Parametrized, True), (WithOwnForward, False), (WithOwnConvolution, False), (WithOwnBias, False)],
)
def test_a_subclass_that_parametrizes_itself_folds_where_it_changes_nothing_about_calls(
    kind: type[Parametrized], goes: bool
) -> None:
    layers = {"conv": kind(4, 4, 3), "norm": nn.BatchNorm2d(4)}
    model = Block(lambda self, x: self.norm(self.conv(x)), **layers)
    result, report = folded(model, torch.randn(2, 4, 5, 5))
    assert len(report.folded) == goes
    assert isinstance(result.conv, kind)


class Static(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = block()

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return F.relu(x)


def test_a_static_forward_reaches_no_parts() -> None:
    result, report = folded(Static(), IMAGE)
    assert torch.equal(result(IMAGE), IMAGE.relu())
    assert any("cannot be traced" in note for note in report.notes)
