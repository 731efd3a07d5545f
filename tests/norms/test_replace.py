"""Replacing: everything the new kind has is carried over, and nothing that would erase data is done."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bntool
from bntool.errors import UsageError
from bntool.norms.layers import FrozenBatchNorm
from bntool.norms.stand_in import NormAct
from tests.norms.nets import Chain, randomized


def images() -> Tensor:
    return torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(2)) * 2 + 1


def norm_of(to: str, **options: Any) -> nn.Module:
    return bntool.replace(randomized(nn.Sequential(nn.BatchNorm2d(4))), to, **options).model[0]


@pytest.mark.parametrize("to", ["sync", "renorm", "ghost", "frozen"])
def test_kinds_with_running_statistics_compute_the_same_and_come_back(to: str) -> None:
    model, x = randomized(Chain()), images()
    there = bntool.replace(model, to, example_inputs=x)
    assert torch.equal(there.model(x), model(x))
    assert there.report.eval.max_abs_error == 0
    assert [e.name for e in there.report.replaced] == ["first", "second"]
    back = bntool.replace(there.model, "batch", example_inputs=x)
    assert type(back.model.first) is nn.BatchNorm2d
    assert torch.equal(back.model(x), model(x))
    assert {k: v.shape for k, v in back.model.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("group", "GroupNorm"),
        ("layer", "ChannelLayerNorm"),
        ("instance", "InstanceNorm2d"),
        ("rms", "ChannelRMSNorm"),
    ],
)
def test_other_kinds_keep_gamma_and_beta_and_say_how_far_outputs_moved(to: str, expected: str) -> None:
    model = randomized(Chain())
    result = bntool.replace(model, to, example_inputs=images())
    assert type(result.model.first).__name__ == expected
    assert torch.equal(result.model.first.weight, model.first.weight)
    if to != "rms":
        assert torch.equal(result.model.first.bias, model.first.bias)
    assert result.report.eval.max_rel_error > 0.01
    assert "changed" in result.report.notes[0]
    json.dumps(result.report.to_dict())


def test_eps_momentum_dtype_mode_and_gradient_flags_are_carried() -> None:
    model = randomized(nn.Sequential(nn.BatchNorm2d(4, eps=0.02, momentum=0.3))).double()
    model.train()
    model[0].eval()
    model[0].weight.requires_grad_(False)
    calls: list[int] = []
    model[0].register_forward_hook(lambda m, args, out: calls.append(1))
    for to in ("sync", "group", "ghost"):
        norm = bntool.replace(model, to).model[0]
        assert norm.eps == 0.02
        assert getattr(norm, "momentum", 0.3) == 0.3
        assert norm.weight.dtype == torch.float64
        assert not norm.training
        assert not norm.weight.requires_grad
        assert norm.bias.requires_grad
        assert len(norm._forward_hooks) == 1


def test_without_affine_parameters_none_appear() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4, affine=False))
    for to in ("sync", "group", "layer", "renorm"):
        assert not list(bntool.replace(model, to).model.parameters())
    assert not any(p is not None for p in bntool.replace(model, "instance").model[0].parameters())


def test_without_running_statistics_none_appear_and_nothing_can_be_frozen() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert bntool.replace(model, "sync").model[0].running_mean is None
    assert torch.equal(bntool.replace(model, "sync").model(images()), model(images()))
    assert "no running statistics" in bntool.replace(model, "frozen").report.kept["0"]


def test_a_freeze_survives_train_and_no_optimizer_moves_it() -> None:
    model, x = randomized(Chain()), images()
    frozen = bntool.replace(model, "frozen").model.train()
    assert torch.equal(frozen(x), model(x))
    before = copy.deepcopy(frozen.first.state_dict())
    optimizer = torch.optim.SGD(frozen.parameters(), 0.1, weight_decay=0.1)
    frozen(x).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in frozen.first.state_dict().items())
    frozen.load_state_dict(model.state_dict())  # a checkpoint from before the freeze, counters and all


def test_frozen_becomes_trainable_again() -> None:
    frozen = bntool.replace(randomized(Chain()), "frozen").model
    batch = bntool.replace(frozen, "batch", example_inputs=images()).model
    assert batch.first.weight.requires_grad
    assert torch.equal(batch.first.running_var, frozen.first.running_var)


class ForeignFrozen(nn.Module):
    """As torchvision and detectron2 have it: four buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 0.001
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.weight * (self.running_var + self.eps).rsqrt()).view(1, -1, 1, 1)
        return (x - self.running_mean.view(1, -1, 1, 1)) * scale + self.bias.view(1, -1, 1, 1)


FrozenBatchNorm2d = type("FrozenBatchNorm2d", (ForeignFrozen,), {})


def test_frozen_norms_of_other_libraries_are_known() -> None:
    model = nn.Sequential(FrozenBatchNorm2d(4))
    norm = bntool.replace(model, "batch").model[0]
    assert type(norm) is nn.BatchNorm2d
    assert torch.allclose(norm.eval()(images()), model(images()), atol=1e-5)


class ActNorm(nn.BatchNorm2d):
    """timm's shape: a norm with a dropout and an activation of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Dropout2d(0.5), nn.LeakyReLU(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


@pytest.mark.parametrize("to", ["sync", "frozen", "group"])
def test_a_subclass_keeps_its_dropout_and_activation(to: str) -> None:
    model = randomized(nn.Sequential(ActNorm(4)))
    result = bntool.replace(model, to, example_inputs=images())
    made = result.model[0]
    assert isinstance(made, NormAct)
    assert made.act.negative_slope == 0.3
    assert made.drop.p == 0.5
    assert result.report.replaced[0].keeps == "drop, act"
    if to != "group":
        assert torch.equal(result.model(images()), model(images()))
    plan = json.loads(json.dumps(result.report.plan))
    again = bntool.apply_plan(nn.Sequential(ActNorm(4)), plan)
    again.load_state_dict(result.model.state_dict())
    assert torch.equal(again.eval()(images()), result.model.eval()(images()))


def test_a_subclass_with_a_forward_of_its_own_is_kept() -> None:
    class Doubled(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    result = bntool.replace(nn.Sequential(Doubled(4)), "sync")
    assert type(result.model[0]) is Doubled
    assert "forward of its own" in result.report.kept["0"]


@pytest.mark.parametrize("to", ["group", "instance"])
def test_what_would_erase_the_data_is_refused(to: str) -> None:
    """GroupNorm(C, C) on (N, C) returns its bias whatever comes in."""
    options = {"groups": 8} if to == "group" else {}
    vectors = nn.Sequential(nn.BatchNorm1d(8))
    with pytest.raises(UsageError, match="erases"):
        bntool.replace(vectors, to, **options)
    with pytest.raises(UsageError, match="erases"):
        bntool.replace(vectors, to, example_inputs=torch.randn(4, 8), **options)
    bntool.replace(vectors, to, example_inputs=torch.randn(4, 8, 5), **options)
    data = torch.randn(64, 8)
    erased = nn.GroupNorm(8, 8)(data)
    assert float(erased.detach().abs().max()) < 1e-3, "the refusal would be vacuous"


def test_groups_default_to_a_common_divisor_that_leaves_something_to_normalise() -> None:
    assert norm_of("group").num_groups == 4
    vectors = nn.Sequential(nn.BatchNorm1d(48))
    assert bntool.replace(vectors, "group").model[0].num_groups <= 12
    assert norm_of("group", groups=2).num_groups == 2
    with pytest.raises(UsageError, match="divide"):
        norm_of("group", groups=3)


def test_layer_norm_is_over_channels_at_every_position() -> None:
    x = images()
    made = norm_of("layer")
    nn.init.ones_(made.weight)
    nn.init.zeros_(made.bias)
    assert torch.allclose(made(x).mean(1), torch.zeros(5, 6, 6), atol=1e-6)
    assert torch.allclose(made(x).var(1, correction=0), torch.ones(5, 6, 6), atol=1e-3)


def test_a_shared_norm_stays_shared_and_globs_choose() -> None:
    shared = nn.BatchNorm2d(4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.BatchNorm2d(4))
    made = bntool.replace(model, "group", exclude=["3"])
    assert made.model[0] is made.model[2]
    assert made.report.kept == {"3": "excluded"}
    assert type(made.model[3]) is nn.BatchNorm2d


def test_none_takes_them_out_and_lazy_ones_need_inputs() -> None:
    assert isinstance(norm_of("none"), nn.Identity)
    lazy = nn.Sequential(nn.LazyBatchNorm2d())
    with pytest.raises(UsageError, match="lazy"):
        bntool.replace(lazy, "group")
    assert isinstance(bntool.replace(lazy, "group", example_inputs=images()).model[0], nn.GroupNorm)
    with pytest.raises(UsageError, match="unknown"):
        norm_of("magic")


def test_a_dry_run_changes_nothing() -> None:
    result = bntool.replace(randomized(Chain()), "group", dry_run=True)
    assert type(result.model.first) is nn.BatchNorm2d
    assert [e.now for e in result.report.replaced] == ["GroupNorm", "GroupNorm"]


def test_frozen_norms_are_not_parameters() -> None:
    assert not list(FrozenBatchNorm(3).parameters())


def test_taking_a_norm_out_leaves_its_activation() -> None:
    model = randomized(nn.Sequential(ActNorm(4)))
    result = bntool.replace(model, "none", example_inputs=images())
    assert torch.equal(result.model(images()), model[0].act(images()))
    assert result.report.replaced[0].keeps == "drop, act"
    again = bntool.apply_plan(nn.Sequential(ActNorm(4)), json.loads(json.dumps(result.report.plan)))
    assert torch.equal(again.eval()(images()), result.model(images()))


@pytest.mark.parametrize("to", ["layer", "rms"])
@pytest.mark.parametrize("shape", [(4, 8), (4, 8, 5), (4, 8, 8)])
def test_without_sizes_a_norm_over_sequences_is_over_their_channels(to: str, shape: tuple[int, ...]) -> None:
    """On (N, C, L) with L = C a norm over the last dimension would run, and be another one."""
    torch.manual_seed(0)
    model, x = randomized(nn.Sequential(nn.BatchNorm1d(8))), torch.randn(shape)
    blind = bntool.replace(model, to).model
    assert torch.equal(blind(x), bntool.replace(model, to, example_inputs=x).model(x))


def test_what_cannot_be_known_without_example_inputs_is_said() -> None:
    model = nn.Sequential(nn.SyncBatchNorm(4))
    notes = bntool.replace(model, "group").report.notes
    assert any("taken to be over images" in note for note in notes)
    assert any("erase the data" in note for note in notes)
    assert len(bntool.replace(model, "group", example_inputs=images()).report.notes) == 1


def test_a_lazy_norm_becomes_a_sync_norm_of_the_size_the_inputs_give() -> None:
    """`convert_sync_batchnorm` makes one of no channels."""
    made = bntool.replace(nn.Sequential(nn.LazyBatchNorm2d()), "sync", example_inputs=images()).model[0]
    assert type(made) is nn.SyncBatchNorm
    assert made.num_features == 4
    assert nn.SyncBatchNorm.convert_sync_batchnorm(nn.LazyBatchNorm2d()).num_features == 0


@pytest.mark.parametrize("to", ["sync", "group", "layer", "frozen", "renorm"])
def test_the_device_is_kept(to: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(4, device="meta"))
    made = bntool.replace(model, to).model[0]
    assert {t.device.type for t in (*made.parameters(), *made.buffers())} == {"meta"}
