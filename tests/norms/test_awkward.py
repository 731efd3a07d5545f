"""Models that do with their layers what nobody expects: read, index, count, draw, compute weights anew."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from types import MethodType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bntool
from bntool.edits import plan_of
from bntool.errors import UsageError
from tests.norms.nets import Two, randomized

FORMS = pytest.mark.parametrize("form", ["module", "graph"])


def images() -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def built(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return randomized(kind())


def there_and_back(model: nn.Module, **options: object) -> dict[str, str]:
    """Insert, insist on the function, fold, insist again. Returns: what became of each layer's bias."""
    x, result = images(), bntool.insert(model, images(), **options)
    expected = model(x.clone()).detach()
    for made in (result.model, bntool.fold(result.model, x).model):
        assert torch.allclose(made(x.clone()), expected, atol=2e-6 * float(expected.abs().max()))
    return {entry.layer: entry.bias for entry in result.report.inserted}


# --- biases that somebody else reads


class ReadsBias(Two):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x)) * self.a.bias.view(1, -1, 1, 1)
        return self.out(F.relu(self.b(x)))


class Padding(nn.Conv2d):
    """A forward of its own, which uses the bias as torch's does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class AddsItsBias(nn.Conv2d):
    """A forward of its own, which adds the bias itself."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight) + self.bias.view(1, -1, 1, 1)


class Subclassed(Two):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Padding(3, 4, 3), AddsItsBias(4, 4, 3)


def test_a_bias_that_others_read_stays() -> None:
    for form in ("module", "graph"):
        assert there_and_back(built(ReadsBias), form=form) == {"a": "kept", "b": "dropped"}
    assert there_and_back(built(Subclassed)) == {"a": "dropped", "b": "kept"}


@pytest.mark.parametrize("form", ["module", "graph"])
def test_a_hook_on_a_layer_sees_what_it_saw(form: str) -> None:
    model, seen = built(Two), list[Tensor]()
    model.a.register_forward_hook(lambda _, __, output: seen.append(output.detach().clone()))
    assert there_and_back(model, form=form) == {"a": "kept", "b": "dropped"}
    result = bntool.insert(model, images(), form=form)
    seen.clear()
    model(images())
    result.model(images())
    assert torch.equal(*seen)


def test_the_plan_of_there_and_back_fits_a_weight_that_is_parametrised() -> None:
    """The layer's weight becomes a plain one where the layer is: inside what stands in for it."""

    class Parametrised(Two):
        def __init__(self) -> None:
            super().__init__()
            nn.utils.parametrizations.weight_norm(self.a)

    model = built(Parametrised)
    folded = bntool.fold(bntool.insert(model, images()).model, images()).model
    again = bntool.apply_plan(Parametrised(), json.loads(json.dumps(plan_of(folded)))).eval()
    again.load_state_dict(folded.state_dict())
    assert torch.equal(again(images()), folded(images()))


# --- Sequentials that others take things from


class CallsAnItem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU()]
        self.body, self.out = nn.Sequential(*layers), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(self.body[1](x)))


class ReadsAnItem(CallsAnItem):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x)) * self.body[2].weight.mean()


class OtherName(CallsAnItem):
    """The item has a name of its own, by which it is called: its index may move."""

    def __init__(self) -> None:
        super().__init__()
        self.act = self.body[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(self.act(x)))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (CallsAnItem, ["body.0.norm", "body.2.norm"]),
        (ReadsAnItem, ["body.0.norm", "body.2.norm"]),
        (OtherName, ["body.1", "body.4"]),
    ],
)
def test_a_sequential_grows_only_where_nobody_counts_its_items(
    kind: type[nn.Module], names: list[str]
) -> None:
    there_and_back(built(kind))
    report = bntool.insert(built(kind), images(), include=["body.*"]).report
    assert [e.name for e in report.inserted] == names


# --- state, randomness, outputs


class Stateful(Two):
    """Moves its buffers in eval mode too: one in place, one by putting another in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(3))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.average = 0.5 * self.average + x.mean((0, 2, 3))
        return super().forward(self.norm(x - self.average.view(1, -1, 1, 1)))


@FORMS
def test_looking_at_a_model_with_state_does_not_move_it(form: str) -> None:
    model = built(Stateful)
    before = copy.deepcopy(model.state_dict())
    inserted = bntool.insert(model, images(), form=form)
    assert [e.layer for e in inserted.report.inserted] == ["a", "b"]
    calibrated = bntool.calibrate(model, [images(), images()], compare=True)
    replaced = bntool.replace(model, "frozen", example_inputs=images())
    folded = bntool.fold(inserted.model, images())
    bntool.verify(model, inserted.model, images()).insist()
    for made in (model, inserted.model, calibrated.model, replaced.model, folded.model):
        assert int(made.calls) == 0
        assert torch.equal(made.average, torch.zeros(3))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class AlwaysDrops(Two):
    """`training=self.training` was forgotten."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.dropout(F.relu(self.b(F.relu(self.a(x)))), 0.3))


@FORMS
def test_a_model_that_draws_in_eval_mode_is_compared_on_the_same_draws(form: str) -> None:
    report = bntool.insert(built(AlwaysDrops), images(), form=form).report
    assert report.eval.max_rel_error < 1e-5
    assert len(report.inserted) == 2


@dataclass
class Found:
    scores: Tensor
    mask: Tensor


class Masked(Two):
    """A dataclass; scores that are -inf in places; nothing where there is nothing."""

    def forward(self, x: Tensor) -> tuple[Found, Tensor]:
        scores = super().forward(x)
        masked = scores.masked_fill(x[:, :2, 2:-2, 2:-2] > 0, float("-inf"))
        return Found(masked, masked > 0), scores[:, :0]


def test_outputs_of_every_kind_are_compared() -> None:
    report = bntool.insert(built(Masked), images()).report
    assert 0 < report.eval.max_abs_error < 1e-5, "not nothing: it was looked at"


class Classes(Two):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


def test_outputs_without_floating_point_numbers_are_compared_too() -> None:
    assert bntool.insert(built(Classes), images()).report.eval.max_abs_error == 0


class NormedByCalls(Two):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("var", torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(F.instance_norm(self.b(F.relu(F.batch_norm(self.a(x), self.mean, self.var))))))


@FORMS
def test_norms_by_function_call_are_named(form: str) -> None:
    reasons = bntool.insert(built(NormedByCalls), images(), form=form).report.left_out
    assert reasons["a"] == "already normalised by batch_norm"
    assert reasons["b"] == "already normalised by instance_norm"


# --- weights computed before every call


class ByHook(Two):
    """torch's old way: the weight is no parameter but the result of a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.weight_norm(self.a)
        self.b = nn.utils.spectral_norm(self.b)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_weights_from_hooks() -> None:
    model = built(ByHook)
    model(images())  # the weight is now part of an autograd graph, which torch cannot copy
    assert there_and_back(model) == {"a": "dropped", "b": "dropped"}
    assert model.a.weight.grad_fn is not None


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


class StandardisedTwo(Two):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Standardised(3, 4, 3), Standardised(4, 4, 3)


def test_weights_computed_in_forward() -> None:
    assert there_and_back(built(StandardisedTwo)) == {"a": "dropped", "b": "dropped"}


class Sequence(nn.Module):
    """A convolution over (N, C, L) whose norm's map goes on through a transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(3, 5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x).transpose(1, 2)))


@pytest.mark.parametrize("norm", ["batch", "sync", "frozen", "ghost", "renorm"])
def test_norms_over_sequences_fold_at_their_own_rank(norm: str) -> None:
    model, x = built(Sequence), torch.randn(4, 3, 9)
    result = bntool.insert(model, x, norm=norm)
    folded = bntool.fold(result.model, x)
    assert len(folded.report.folded) == len(result.report.inserted) == 1
    assert torch.allclose(folded.model(x), model(x), atol=1e-5)


class FarFromZero(Two):
    """Values of a thousand, of which a thousand is taken again: last bits are what is left."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.a.bias += 1000.0

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.b(F.relu(self.a(x)) - 1000.0)))


def test_a_model_that_amplifies_rounding_is_not_refused_for_that() -> None:
    model, x = built(FarFromZero).double(), images().double()
    report = bntool.insert(model, x).report
    assert len(report.inserted) == 2
    assert report.eval.max_rel_error < 1e-11
    assert any("amplifies rounding" in note for note in report.notes)
    assert not any("amplifies" in note for note in bntool.insert(built(Two), images()).report.notes)


class Parametrized(Two):
    """torch gives the class of a parametrized layer a `__deepcopy__` of its own."""

    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.a)


def test_a_copy_of_a_parametrized_layer_with_a_norm_has_the_norm() -> None:
    made = bntool.insert(built(Parametrized), images(), init="fresh").model
    again = copy.deepcopy(made)
    assert list(again.state_dict()) == list(made.state_dict())
    assert type(again.a) is type(made.a)
    again.a.norm.weight.data.fill_(3.0)
    assert torch.equal(made.a.norm.weight, torch.ones(4)), "a copy of its own"
    assert [e.name for e in bntool.calibrate(again, [images()]).report.calibrated] == ["a.norm", "b.norm"]


@pytest.mark.parametrize("method", ["lockstep", "passes"])
def test_calibrate_takes_outputs_of_any_class(method: str) -> None:
    model = bntool.insert(built(Masked), images(), init="fresh").model
    assert len(bntool.calibrate(model, [images()], method=method).report.calibrated) == 2


# --- norms that are not what their class says


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [3 * torch.randn(n, 4, 4, generator=generator) + 1 for n in (5, 2)]


class Transposed(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Flattened(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).reshape_as(x)


class InFloat64(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double()).to(x.dtype)


@pytest.mark.parametrize("kind", [Transposed, Flattened])
def test_calibrate_takes_no_statistics_of_what_a_norm_does_not_normalise(kind: type[nn.BatchNorm1d]) -> None:
    model = randomized(nn.Sequential(nn.Linear(4, 4), kind(4), nn.Flatten(), nn.BatchNorm1d(16)))
    before = copy.deepcopy(model.state_dict())
    result = bntool.calibrate(model, batches())
    assert "normalises something else" in result.report.skipped["1"]
    assert [entry.name for entry in result.report.calibrated] == ["3"]
    assert torch.equal(result.model[1].running_mean, before["1.running_mean"])
    assert not result.model[1]._forward_pre_hooks


def test_calibrate_takes_a_norm_that_only_casts() -> None:
    model = randomized(nn.Sequential(nn.Linear(4, 4), InFloat64(4).double())).train()
    calibrated = bntool.calibrate(model, batches()).model
    rows = torch.cat([model[0](x) for x in batches()]).transpose(0, 1).flatten(1).double()
    assert torch.allclose(calibrated[1].running_mean, rows.mean(1))
    assert calibrated[1].training


def test_calibrate_asks_the_wrapped_model_for_its_mode() -> None:
    inner = randomized(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))).eval()
    result = bntool.calibrate(nn.DataParallel(inner), batches())
    assert [entry.name for entry in result.report.calibrated] == ["module.1"]


def test_replace_reaches_a_norm_wherever_it_is_held() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.held = SimpleNamespace(norm=self.norm)

        def forward(self, x: Tensor) -> Tensor:
            return self.held.norm(self.conv(x))  # type: ignore[no-any-return]

    model, x = built(Holder), images()
    there = bntool.replace(model, "group", example_inputs=x)
    assert type(there.model.held.norm) is nn.GroupNorm
    assert torch.equal(there.model.norm.weight, model.norm.weight)
    assert there.report.eval.max_abs_error > 0
    assert type(model.held.norm) is nn.BatchNorm2d
    back = bntool.fold(model, x, verify=False).model
    filled = bntool.unfold(back, x).model
    assert type(filled.held.norm) is nn.BatchNorm2d
    assert torch.allclose(filled(x), model(x), atol=1e-5)


def test_replace_keeps_a_norm_that_was_given_another_forward() -> None:
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model[1].forward = MethodType(lambda self, x: x * self.weight[0], model[1])
    result = bntool.replace(model.eval(), "frozen", example_inputs=images())
    assert "forward of its own" in result.report.kept["1"]
    assert result.report.eval.max_abs_error == 0


@pytest.mark.parametrize("verb", ["insert", "calibrate"])
def test_tensors_without_data_are_named(verb: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    model[3].to("meta")
    calls = {
        "insert": lambda: bntool.insert(model, images()),
        "calibrate": lambda: bntool.calibrate(model, [images()]),
    }
    with pytest.raises(UsageError, match=r"3\.weight: it is on the meta device"):
        calls[verb]()
