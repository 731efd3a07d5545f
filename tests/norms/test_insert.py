"""Inserting: the function stays in eval and train mode, keys stay loadable, fold gives the weights back."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import bntool
from bntool.errors import LoadError, RunError, UsageError
from bntool.norms.stand_in import Normed
from bntool.placing.key_map import renamed
from sample_models.lenet import lenet
from sample_models.mlp import mlp
from sample_models.vgg import vgg
from tests.norms.nets import Two

EPS32 = torch.finfo(torch.float32).eps


class Plain(nn.Module):
    """Attributes and functional activations: nothing but the convs' own places can hold a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = self.up(F.relu(self.conv2(x)) + x)
        return self.head(F.relu(x).mean((2, 3)))


def data(batches: int = 3, shape: tuple[int, ...] = (8, 3, 8, 8), seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * 2 + 1 for _ in range(batches)]


def plain() -> Plain:
    torch.manual_seed(5)
    return Plain().eval()


def outputs_close(a: nn.Module, b: nn.Module, x: Tensor, depth: int = 8) -> bool:
    with torch.no_grad():
        expected, got = a(x), b(x)
    return bool(((expected - got).abs() <= 64 * depth * EPS32 * expected.abs().max()).all())


def test_the_outputs_stay_and_the_report_proves_it() -> None:
    model = plain()
    result = bntool.insert(model, torch.randn(2, 3, 8, 8), data=data())
    assert type(result.model) is Plain
    assert [e.name for e in result.report.inserted] == ["conv1.norm", "conv2.norm", "up.norm"]
    assert outputs_close(model, result.model, torch.randn(5, 3, 8, 8))
    assert result.report.eval.max_rel_error < 1e-5
    assert result.report.data == "the given data"
    assert (result.report.batches, result.report.samples) == (3, 24)
    json.dumps(result.report.to_dict())


def test_the_statistics_are_pooled_over_the_data() -> None:
    model, batches = plain(), [*data(2), *data(1, (3, 3, 8, 8), seed=9)]
    norm = bntool.insert(model, batches[0], data=batches, bias="keep").model.conv1.norm
    with torch.no_grad():
        values = model.double().conv1(torch.cat(batches).double()).transpose(0, 1).flatten(1)
    assert torch.allclose(norm.running_mean.double(), values.mean(1), rtol=1e-5, atol=1e-6)
    assert torch.allclose(norm.running_var.double(), values.var(1), rtol=1e-5)
    assert torch.equal(norm.weight, torch.sqrt(norm.running_var.double() + norm.eps).float())
    assert torch.equal(norm.bias, norm.running_mean)


def test_the_first_training_step_starts_from_the_same_function() -> None:
    """A fresh norm passes a check in eval mode once calibrated, and breaks at the first training step."""
    model, batches = plain(), data(8, (32, 3, 8, 8))
    preserved = bntool.insert(model, batches[0], data=batches).report.train
    fresh = bntool.insert(model, batches[0], data=batches, init="fresh").report.train
    assert [p.batch_size for p in preserved] == [2, 8, 32]
    for ours, usual in zip(preserved, fresh, strict=True):
        assert ours.relative_change < 0.5 * usual.relative_change
    assert preserved[0].relative_change > preserved[2].relative_change, "larger batches: nearer"


def test_a_norm_at_its_usual_start_is_not_the_identity_even_in_eval_mode() -> None:
    """x / sqrt(1 + eps): three norms of eps = 0.1 shrink the outputs, and the report says by how much."""
    model, x = plain(), data()[0]
    result = bntool.insert(model, x, init="fresh", bias="keep", eps=0.1)
    norm = result.model.conv1.norm
    assert torch.allclose(norm(x.repeat(1, 3, 1, 1)[:, :8]), x.repeat(1, 3, 1, 1)[:, :8] / math.sqrt(1.1))
    assert result.report.eval.max_rel_error > 0.02
    assert bntool.insert(model, x, eps=0.1).report.eval.max_rel_error < 1e-5


def test_without_data_random_inputs_stand_in_and_the_report_says_so() -> None:
    report = bntool.insert(plain(), torch.randn(2, 3, 8, 8)).report
    assert "random" in report.data
    assert report.samples >= 32


def test_a_bias_the_norm_hides_moves_into_it_exactly() -> None:
    model, batches = plain(), data()
    dropped = bntool.insert(model, batches[0], data=batches)
    kept = bntool.insert(model, batches[0], data=batches, bias="keep")
    assert dropped.model.conv1.bias is None
    assert kept.model.conv1.bias is not None
    shift = kept.model.conv1.norm.running_mean - dropped.model.conv1.norm.running_mean
    assert torch.allclose(shift, model.conv1.bias, atol=4 * EPS32 * float(shift.abs().max() + 4))
    words = {e.layer: e.bias for e in dropped.report.inserted}
    assert words == {"conv1": "dropped", "conv2": "none", "up": "dropped"}
    assert outputs_close(kept.model, dropped.model, batches[0])


def test_dead_channels_are_flagged_and_pass_unchanged() -> None:
    model = plain()
    with torch.no_grad():
        model.conv1.weight[2] = 0
    result = bntool.insert(model, data()[0], data=data())
    entry = result.report.inserted[0]
    assert entry.dead_channels == 1
    norm = result.model.conv1.norm
    assert norm.running_var[2] == 0
    assert norm.weight[2].item() == pytest.approx(math.sqrt(norm.eps), rel=1e-6)
    assert outputs_close(model, result.model, data(seed=4)[0])
    assert any("dead" in note for note in result.report.notes)


# --- where norms go


def left_out(model: nn.Module, x: Any, **options: Any) -> dict[str, str]:
    return bntool.insert(model.eval(), x, **options).report.left_out


def test_the_output_layer_is_left_out() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1)
    )
    assert left_out(model, torch.randn(2, 3, 8, 8)) == {"2": "the output layer: no layer comes after it"}


def test_a_layer_after_a_dropout_is_left_out() -> None:
    model = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
    )
    reasons = left_out(model, torch.randn(4, 6))
    assert set(reasons) == {"3", "5"}
    assert "dropout" in reasons["3"]
    model[2].p = 0.0
    assert set(left_out(model, torch.randn(4, 6))) == {"5"}


class SharedHead(nn.Module):
    """One tower over several scales, as detectors have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.tower = nn.Conv2d(4, 4, 3, padding=1)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return sum(self.out(F.relu(self.tower(s)).mean((2, 3))) for s in (x, F.max_pool2d(x, 2)))


def test_a_head_shared_over_scales_is_left_out() -> None:
    reasons = left_out(SharedHead(), torch.randn(2, 3, 8, 8))
    assert "called 2 times over 2 sizes" in reasons["tower"]
    assert "stem" not in reasons


def test_one_value_per_channel_is_left_out_by_n_eff_not_by_batch_size() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    assert "one value per channel" in left_out(model, torch.randn(1, 6))["0"]
    assert set(left_out(model, torch.randn(1, 6), batch_size=16)) == {"2"}
    images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    report = bntool.insert(images.eval(), torch.randn(1, 3, 8, 8)).report
    assert [(e.layer, e.n_eff) for e in report.inserted] == [("0", 36), ("2", 16)]
    assert [
        e.n_eff for e in bntool.insert(images, torch.randn(1, 3, 8, 8), batch_size=4).report.inserted
    ] == [144, 64]


class Gate(nn.Module):
    """A convolution over a 1x1 map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.out = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return self.out(x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))))


def test_a_map_of_one_value_has_to_be_asked_for_and_needs_a_batch() -> None:
    model, x = Gate().eval(), torch.randn(1, 3, 8, 8)
    assert "squeeze-and-excite" in left_out(model, x)["gate"]
    assert "one value per channel at batch size 1" in left_out(model, x, include=["gate"])["gate"]
    entry = bntool.insert(model, x, include=["gate"], batch_size=16).report.inserted[0]
    assert (entry.layer, entry.n_eff) == ("gate", 16)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        bntool.insert(model, x, include=["gate"], batch_size=16).model.train()(x)


def test_nothing_is_normalised_twice() -> None:
    first = bntool.insert(plain(), data()[0], data=data())
    again = bntool.insert(first.model, data()[0], data=data())
    assert not again.report.inserted
    assert all("already normalised" in r or "linear" in r for r in again.report.left_out.values())
    assert list(again.model.state_dict()) == list(first.model.state_dict())


class Late(nn.Module):
    """The norm comes after an addition, as in pre-activation networks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.bn(self.a(x) + self.b(x))))


def test_a_norm_behind_an_addition_counts_as_a_norm() -> None:
    reasons = left_out(Late(), torch.randn(2, 3, 4, 4))
    assert reasons["a"] == reasons["b"] == "already normalised by bn"


def test_linears_of_a_convolutional_network_and_of_transformers_wait_to_be_asked() -> None:
    assert {"fc1", "fc2"} <= set(left_out(lenet(), torch.randn(4, 1, 8, 8)))
    asked = bntool.insert(lenet().eval(), torch.randn(4, 1, 8, 8), layers="all").report
    assert [e.layer for e in asked.inserted] == ["conv1", "conv2", "fc1", "fc2"]
    tokens = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8))
    assert "transformers" in left_out(tokens, torch.randn(4, 5, 6))["0"]
    result = bntool.insert(tokens, torch.randn(4, 5, 6), include=["0"])
    assert result.report.inserted[0].n_eff == 20
    assert outputs_close(tokens, result.model, torch.randn(4, 5, 6))


def test_globs_choose_and_a_dry_run_only_plans() -> None:
    model = plain()
    result = bntool.insert(model, data()[0], include=["conv*"], exclude=["conv2"], dry_run=True)
    assert [e.layer for e in result.report.inserted] == ["conv1"]
    assert result.report.left_out["conv2"] == "excluded"
    assert list(result.model.state_dict()) == list(model.state_dict())


class Forked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.bright, self.dark = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.stem(x))
        x = F.relu(self.bright(x) if x.mean() > 100 else self.dark(x))
        return {"scores": self.head(x.mean((2, 3)))}


def test_control_flow_is_followed_and_unreached_layers_are_named() -> None:
    report = bntool.insert(Forked().eval(), torch.randn(2, 3, 8, 8)).report
    assert [e.layer for e in report.inserted] == ["stem", "dark"]
    assert report.left_out["bright"] == "the example inputs do not reach it"


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("before-activation", ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU", "Conv2d"]),
        ("after-activation", ["Conv2d", "ReLU", "BatchNorm2d", "Conv2d", "ReLU", "BatchNorm2d", "Conv2d"]),
        ("before-layer", ["Conv2d", "ReLU", "BatchNorm2d", "Conv2d", "ReLU", "Conv2d"]),
    ],
)
@pytest.mark.parametrize("form", ["module", "graph"])
def test_where_in_both_forms(where: str, expected: list[str], form: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)]
    model = nn.Sequential(*layers).eval()
    result = bntool.insert(model, torch.randn(2, 3, 8, 8), where=where, form=form)
    assert outputs_close(model, result.model, torch.randn(2, 3, 8, 8))
    if form == "module":
        assert [type(m).__name__ for m in result.model] == expected
    assert len(result.report.inserted) == expected.count("BatchNorm2d")


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(F.conv2d(x, self.weight, stride=2)).mean((2, 3)))


def test_graph_form_reaches_function_calls() -> None:
    model, x = Functional().eval(), torch.randn(4, 3, 9, 9)
    result = bntool.insert(model, x, form="graph")
    assert isinstance(result.model, torch.fx.GraphModule)
    assert len(result.report.inserted) == 1
    assert outputs_close(model, result.model, x)
    assert result.model.train()(x).shape == (4, 2)


# --- keys


def test_a_sequential_gets_real_indices_and_the_keys_of_the_network_built_with_norms() -> None:
    def build(norms: bool) -> nn.Sequential:
        layers: list[nn.Module] = []
        for a, b in ((3, 4), (4, 6)):
            layers += [nn.Conv2d(a, b, 3), *([nn.BatchNorm2d(b)] if norms else []), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 2))

    model = build(False).eval()
    result = bntool.insert(model, torch.randn(4, 3, 8, 8))
    twin = build(True).eval()
    assert list(twin.state_dict()) == list(result.model.state_dict())
    twin.load_state_dict(result.model.state_dict())
    assert outputs_close(model, twin, torch.randn(4, 3, 8, 8))
    keys = result.report.keys
    assert keys["2.weight"] == "3.weight"
    assert result.report.keys_back["3.weight"] == "2.weight"
    moved = renamed(model.state_dict(), keys)
    assert all(torch.equal(v, result.model.state_dict()[k]) for k, v in moved.items())


def test_old_checkpoints_load_where_attributes_were_and_give_the_plain_function_back() -> None:
    model = plain()
    result = bntool.insert(model, data()[0], data=data())
    other = Plain().eval()
    result.model.load_state_dict(other.state_dict())  # strict
    assert outputs_close(other, result.model, data(seed=8)[0])
    assert torch.equal(result.model.conv1.weight, other.conv1.weight)
    assert result.report.keys["conv1.weight"] == "conv1.layer.weight"
    assert result.report.keys["conv1.bias"] is None
    own = bntool.insert(model, data()[0], data=data()).model
    own.load_state_dict(copy.deepcopy(own.state_dict()))
    assert outputs_close(model, own, data(seed=8)[0])


def test_attributes_of_the_layer_are_still_read_through_its_stand_in() -> None:
    made = bntool.insert(plain(), data()[0]).model.conv1
    assert isinstance(made, Normed)
    assert (made.out_channels, made.kernel_size) == (8, (3, 3))
    assert made.weight is made.layer.weight
    with pytest.raises(AttributeError):
        _ = made.nonsense


def test_a_shared_sequential_that_is_walked_by_hand_is_not_renumbered() -> None:
    class Walked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.layers[2](self.layers[1](self.layers[0](x)))))

    model = Walked().eval()
    result = bntool.insert(model, torch.randn(2, 3, 8, 8))
    assert [e.name for e in result.report.inserted] == ["layers.0.norm", "layers.2.norm"]
    assert outputs_close(model, result.model, torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("factory", [Plain, vgg, mlp, lenet])
def test_a_plan_redoes_the_edit_on_a_fresh_model(factory: Any) -> None:
    torch.manual_seed(0)
    shapes = {Plain: (4, 3, 8, 8), vgg: (4, 3, 32, 32), mlp: (4, 64), lenet: (4, 1, 8, 8)}
    x = torch.randn(shapes[factory])
    result = bntool.insert(factory().eval(), x)
    again = bntool.apply_plan(factory(), json.loads(json.dumps(result.report.plan)))
    again.load_state_dict(result.model.state_dict())
    assert torch.equal(again.eval()(x), result.model(x))


def test_a_plan_is_read_from_a_file(tmp_path: Path) -> None:
    result = bntool.insert(plain(), data()[0])
    for name, document in (("plan.json", result.report.plan), ("report.json", result.report.to_dict())):
        (tmp_path / name).write_text(json.dumps(document))
        again = bntool.apply_plan(Plain(), tmp_path / name)
        again.load_state_dict(result.model.state_dict())
    with pytest.raises(LoadError, match="no plan"):
        bntool.apply_plan(Plain(), str(tmp_path / "missing.json"))


# --- the norms


@pytest.mark.parametrize("norm", ["batch", "renorm", "ghost", "frozen", "sync"])
def test_norms_with_running_statistics_preserve(norm: str) -> None:
    result = bntool.insert(plain(), data()[0], data=data(), norm=norm)
    assert {e.norm for e in result.report.inserted} == {norm}
    assert result.report.eval.max_rel_error < 1e-5
    assert not result.report.notes


@pytest.mark.parametrize("norm", ["group", "layer", "instance", "rms"])
def test_norms_without_say_that_they_cannot_and_a_gate_makes_them(norm: str) -> None:
    result = bntool.insert(plain(), data()[0], data=data(), norm=norm)
    assert result.report.eval.max_rel_error > 0.01
    assert "cannot" in result.report.notes[0]
    gated = bntool.insert(plain(), data()[0], data=data(), norm=norm, gated=True)
    assert gated.report.eval.max_rel_error < 1e-6
    gated.model.train()(data()[0]).sum().backward()
    assert gated.model.conv1.norm.gate.grad.abs() > 0, "training can open the gate"


def test_auto_picks_by_n_eff_and_says_why() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    picks = {}
    for size in (1, 4, 16, 64):
        entry = bntool.insert(model, torch.randn(4, 6), norm="auto", batch_size=size).report.inserted[0]
        picks[size] = entry.norm
        assert entry.why
    assert picks == {1: "group", 4: "group", 16: "renorm", 64: "batch"}


# --- surviving


def test_deepcopy_and_pickle() -> None:
    made = bntool.insert(plain(), data()[0]).model
    x = data()[0]
    assert torch.equal(copy.deepcopy(made)(x), made(x))
    assert torch.equal(pickle.loads(pickle.dumps(made))(x), made(x))


@pytest.mark.parametrize("form", ["module", "graph"])
def test_compiled_whole(form: str) -> None:
    made = bntool.insert(plain(), data()[0], form=form).model
    compiled = torch.compile(made, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(data()[0]), made(data()[0]))
    made.train()
    assert compiled(data()[0]).shape == (8, 5)


@pytest.mark.parametrize("form", ["module", "graph"])
def test_training_moves_everything_and_the_mode_switches(form: str) -> None:
    made = bntool.insert(plain(), data()[0], form=form).model.train()
    optimizer = torch.optim.SGD(made.parameters(), 0.01)
    before = copy.deepcopy(made.state_dict())
    made(data()[0]).square().sum().backward()
    optimizer.step()
    moved = {k for k, v in made.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == set(before)
    made.eval()
    assert not any(m.training for m in made.modules())


def test_mixed_precision_trains() -> None:
    made = bntool.insert(plain(), data()[0]).model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = made(data()[0]).float().square().sum()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_of_the_model_is_kept(dtype: torch.dtype) -> None:
    model = plain().to(dtype)
    result = bntool.insert(model, data()[0].to(dtype), data=[b.to(dtype) for b in data()])
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert result.report.eval.max_rel_error <= 64 * 4 * torch.finfo(dtype).eps


def test_mode_flags_and_hooks_survive() -> None:
    model = plain().train()
    model.conv1.eval()
    model.conv2.weight.requires_grad_(False)
    calls: list[int] = []
    model.conv1.register_forward_hook(lambda m, args, out: calls.append(1))
    made = bntool.insert(model, data()[0], data=data()).model
    assert made.training
    assert not made.conv1.layer.training
    assert not made.conv2.layer.weight.requires_grad
    calls.clear()
    made(data()[0])
    assert calls == [1]
    assert model.training
    assert not model.conv1.training


def test_lazy_layers_take_their_sizes_on_the_copy() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).eval()
    result = bntool.insert(model, data()[0])
    assert [e.layer for e in result.report.inserted] == ["0"]
    assert model[0].has_uninitialized_params()


def test_inputs_by_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, image: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
            x = F.relu(self.conv(image if mask is None else image * mask)).mean((2, 3))
            return {"scores": self.head(x)}

    batches = [{"image": b, "mask": torch.ones_like(b), "label": torch.zeros(8)} for b in data()]
    example = {"image": data()[0], "mask": torch.ones_like(data()[0])}
    result = bntool.insert(Named().eval(), example, data=batches)
    assert [e.layer for e in result.report.inserted] == ["conv"]
    assert result.report.eval.max_rel_error < 1e-6


def test_refusals() -> None:
    single = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with pytest.raises(RunError, match="one value"):
        bntool.insert(single, torch.randn(1, 6), data=[torch.randn(1, 6)], batch_size=8)
    with pytest.raises(UsageError, match="norm"):
        bntool.insert(plain(), data()[0], norm="magic")
    with pytest.raises(RunError, match=r"the model raised RuntimeError.*shapes and types"):
        bntool.insert(plain(), torch.randn(2, 5, 8, 8))
    with pytest.raises(UsageError, match="empty"):
        bntool.insert(plain(), data()[0], data=[])
    bad = data()
    bad[1][0, 0, 0, 0] = float("nan")
    with pytest.raises(RunError, match="batch 1"):
        bntool.insert(plain(), data()[0], data=bad)


# --- and back


def weights_back(model: nn.Module, x: Any, **options: Any) -> float:
    """Insert, fold, and compare every original tensor: the largest error in units of what was added to it."""
    inserted = bntool.insert(model, x, **options)
    assert inserted.report.inserted
    folded = bntool.fold(inserted.model, x)
    assert len(folded.report.folded) == len(inserted.report.inserted)
    new = [v for k, v in folded.model.state_dict().items() if "num_batches" not in k]
    old = list(model.state_dict().values())
    assert [v.shape for v in new] == [v.shape for v in old]
    return max(float((a - b).abs().max()) for a, b in zip(new, old, strict=True))


@pytest.mark.parametrize("factory", [vgg, mlp, lenet])
def test_fold_gives_the_original_weights_back(factory: Any) -> None:
    torch.manual_seed(0)
    x = {vgg: torch.randn(4, 3, 32, 32), mlp: torch.randn(4, 64), lenet: torch.randn(4, 1, 8, 8)}[factory]
    assert weights_back(factory().eval(), x) < 1e-6


@pytest.mark.parametrize("norm", ["batch", "sync", "renorm", "ghost", "frozen"])
@pytest.mark.parametrize("form", ["module", "graph"])
def test_every_preserving_norm_folds_away_again(norm: str, form: str) -> None:
    model, x = plain(), data()[0]
    inserted = bntool.insert(model, x, data=data(), norm=norm, form=form)
    folded = bntool.fold(inserted.model, x)
    assert len(folded.report.folded) == len(inserted.report.inserted) == 3
    assert outputs_close(model, folded.model, x)


def test_a_folded_model_has_the_keys_it_had_before_norms_were_put_in() -> None:
    model, x = plain(), data()[0]
    folded = bntool.fold(bntool.insert(model, x, data=data()).model, x)
    before = model.state_dict()
    assert set(folded.model.state_dict()) == set(before) | {"conv2.bias"}
    assert all(
        float((v - before[k]).abs().max()) < 1e-6 for k, v in folded.model.state_dict().items() if k in before
    )
    assert float(folded.model.conv2.bias.detach().abs().max()) < 1e-6
    again = bntool.apply_plan(Plain(), json.loads(json.dumps(bntool.edits.plan_of(folded.model))))
    again.load_state_dict(folded.model.state_dict())
    assert outputs_close(model, again.eval(), x)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_fold_gives_the_weights_of_random_networks_back(draw: st.DataObject) -> None:
    torch.manual_seed(draw.draw(st.integers(0, 1000)))
    widths = draw.draw(st.lists(st.integers(1, 6), min_size=2, max_size=5))
    layers: list[nn.Module] = []
    source = 3
    for width in widths:
        kernel, groups = draw.draw(st.sampled_from([1, 3])), draw.draw(st.sampled_from([1, 3]))
        groups = groups if source % groups == 0 else 1
        layers.append(nn.Conv2d(source, width * groups, kernel, padding=kernel // 2, groups=groups))
        layers.append(draw.draw(st.sampled_from([nn.ReLU(), nn.Tanh(), nn.SiLU(), nn.Identity()])))
        source = width * groups
    model = nn.Sequential(*layers, nn.Conv2d(source, 2, 1)).eval()
    assert weights_back(model, torch.randn(4, 3, 6, 6)) < 1e-6


@pytest.mark.parametrize("form", ["module", "graph"])
def test_a_glob_that_names_nothing_is_noted(form: str) -> None:
    for dry_run in (False, True):
        report = bntool.insert(
            Two().eval(), torch.randn(4, 3, 8, 8), form=form, include=["a", "head.*"], dry_run=dry_run
        ).report
        assert [e.layer for e in report.inserted] == ["a"]
        assert report.notes == ["no layer that could take a norm is called head.*"]
