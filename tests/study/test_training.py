"""Training is the same for every arm and every run; a network that diverges is a result."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch
from plans import MLP, setting_of
from torch import nn

from bntool.study.arms import make_arm, with_dropout
from bntool.study.data import Part
from bntool.study.deepening import EXTRA
from bntool.study.scoring import Scoring
from bntool.study.setting import run_trial
from bntool.study.source import ModelSource, initialise, source_of
from bntool.study.training import batches, evaluation_steps
from bntool.study.trial import EXACT, LANDSCAPE, SHIFT, SIGNALS, Trial


def same(result: dict) -> str:
    """Everything but the time it took."""
    return json.dumps({k: v for k, v in result.items() if k != "wall_s"}, sort_keys=True)


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_a_trial_gives_the_same_numbers_again(norm: str) -> None:
    setting = setting_of(MLP)
    trial = Trial(norm, 3, 0.1, 12, dropout=0.3, measures=(SIGNALS, LANDSCAPE, EXACT, SHIFT))
    assert same(run_trial(setting, trial)) == same(run_trial(setting, trial))


def test_measuring_changes_nothing() -> None:
    setting = setting_of(MLP)
    plain = run_trial(setting, Trial("batch", 0, 0.1, 8))
    watched = run_trial(setting, Trial("batch", 0, 0.1, 8, measures=(SIGNALS, LANDSCAPE)))
    assert plain["test_score"] == watched["test_score"]
    assert plain["loss"] == watched["loss"]
    assert plain["score"]
    assert not watched["score"], "scores along the way are for ordinary training"


def test_arms_share_weights_and_the_order_of_data() -> None:
    setting = setting_of(MLP)
    plain, normed = setting.build(Trial("none", 5)), setting.build(Trial("batch", 5))
    layers = [[m for m in model.modules() if isinstance(m, nn.Linear)] for model in (plain, normed)]
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(*layers, strict=True))
    part = setting.data.train
    one, again = (batches(part, 32, 7, "shuffled") for _ in range(2))
    assert [next(one).tolist() for _ in range(60)] == [next(again).tolist() for _ in range(60)]
    first = next(batches(part, 32, 7, "shuffled")).tolist()
    assert first != next(batches(part, 32, 8, "shuffled")).tolist()


def test_an_epoch_shows_every_example_once() -> None:
    part = Part((torch.zeros(64, 1),), torch.arange(64))
    rows = batches(part, 16, 0, "shuffled")
    assert sorted(torch.cat([next(rows) for _ in range(4)]).tolist()) == list(range(64))


def test_sorted_batches_hold_one_class() -> None:
    targets = torch.arange(10).repeat_interleave(32)[torch.randperm(320)]
    rows = batches(Part((torch.zeros(320, 1),), targets), 32, 0, "sorted")
    found = [targets[next(rows)].unique().tolist() for _ in range(10)]
    assert all(len(classes) == 1 for classes in found)
    assert sorted(c[0] for c in found) == list(range(10))


def test_a_network_that_blows_up_scores_chance() -> None:
    setting = setting_of(MLP)
    found = run_trial(setting, Trial("none", 0, 1e6, 50))
    assert found["diverged"]
    assert found["test_score"] == setting.data.chance


def test_steps_of_evaluation_are_ratios_and_end_at_the_end() -> None:
    marks = evaluation_steps(1000)
    assert marks[0] == 1
    assert marks[-1] == 1000
    assert all(b / a <= 2 ** (1 / 4) + 1 / a for a, b in pairwise(marks))
    assert evaluation_steps(0) == []


def zeroed(module: nn.Module) -> None:
    nn.init.zeros_(module.weight)
    nn.init.constant_(module.bias, -5.0)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_optimizers_differ_and_all_learn(optimizer: str) -> None:
    setting = setting_of(MLP)
    rate = {"sgd": 0.2, "momentum": 0.03, "adam": 0.003}[optimizer]
    found = run_trial(setting, Trial("batch", 0, rate, 60, optimizer=optimizer, measures=(LANDSCAPE,)))
    assert found["test_score"] > 0.8
    weights = run_trial(setting, Trial("batch", 0, 0.003, 5))["loss"]
    other = run_trial(setting, Trial("batch", 0, 0.003, 5, optimizer=optimizer))["loss"]
    assert (weights == other) == (optimizer == "sgd")


def test_scores() -> None:
    part = Part((torch.eye(4),), torch.tensor([0, 1, 2, 0]))
    assert Scoring("classification")(nn.Identity(), part) == 0.75
    numbers = Part((torch.tensor([[1.0], [2.0], [3.0]]),), torch.tensor([[1.0], [2.0], [3.0]]))
    assert Scoring("regression")(nn.Identity(), numbers) == 1.0
    assert Scoring("regression")(nn.Linear(1, 1).requires_grad_(False).apply(zeroed), numbers) == 0.0
    flat = Scoring("regression")
    assert flat(nn.Flatten(0), numbers) == 1.0, "(N,) answers (N, 1): nothing is broadcast"
    assert flat.loss(torch.tensor([1.0, 2.0, 3.0]), numbers.targets) == 0.0
    own = Scoring("regression", lambda o, t: (o - t).abs().mean() + 2, start_loss=8.0)
    assert own(nn.Identity(), numbers) == 0.75, "three quarters of the untrained loss are gone"
    assert own(nn.Linear(1, 1).apply(lambda m: nn.init.constant_(m.bias, 1e3)), numbers) == 0.0
    broken = Part((torch.full((2, 3), math.nan),), torch.tensor([0, 1]))
    assert math.isnan(Scoring("classification")(nn.Identity(), broken))


def test_dropout_goes_on_inputs_of_linears_that_do_not_read_the_data() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    x = torch.ones(6, 8)
    with_dropout(model, (x,), 0.9)
    model.train()
    first, second = model(x), model(x)
    assert not torch.equal(first, second)
    assert torch.equal(model[0](x), model[0](x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "renorm", "ghost", "rms"])
def test_every_arm_trains(norm: str) -> None:
    setting = setting_of("sample_models/lenet.py:lenet")
    model = make_arm(setting.source.fresh(0), norm, setting.example())
    kinds = {type(m).__name__ for m in model.modules()} - {
        type(m).__name__ for m in setting.source.fresh(0).modules()
    }
    assert kinds
    found = run_trial(setting, Trial(norm, 0, 0.05, 60))
    assert found["test_score"] > 2 * setting.data.chance


def test_a_model_that_has_norms_loses_them_in_the_plain_arm() -> None:
    setting = setting_of("sample_models/resnet.py:resnet")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in setting.build(Trial("none", 0)).modules())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in setting.build(Trial("batch", 0)).modules()) == 9
    assert sum(isinstance(m, nn.GroupNorm) for m in setting.build(Trial("group", 0)).modules()) == 9


@pytest.mark.parametrize(("own", "kind"), [("group", nn.GroupNorm), ("instance", nn.InstanceNorm2d)])
def test_norms_of_other_kinds_are_an_arm_of_their_own(own: str, kind: type[nn.Module]) -> None:
    def network() -> nn.Sequential:
        norm = nn.GroupNorm(2, 8) if own == "group" else nn.InstanceNorm2d(8, affine=True)
        return nn.Sequential(nn.Conv2d(1, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))

    example = (torch.randn(4, 1, 8, 8),)
    arms = {norm: make_arm(network(), norm, example) for norm in ("none", own, "batch")}
    found = {norm: [type(m) for m in arm.modules()] for norm, arm in arms.items()}
    assert kind in found[own]
    assert kind not in found["none"] + found["batch"]
    assert found["batch"].count(nn.BatchNorm2d) == 1
    assert nn.BatchNorm2d not in found["none"]


def test_a_live_module_starts_anew_with_every_seed_and_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = model[1].weight.detach().clone()
    source = source_of(model)
    one, two = source.fresh(1), source.fresh(2)
    assert not torch.equal(one[1].weight, two[1].weight)
    assert torch.equal(one[1].weight, source.fresh(1)[1].weight)
    assert torch.equal(model[1].weight, before)


def test_initialisations_have_the_variance_they_are_named_for() -> None:
    layer = nn.Linear(400, 300)
    torch.manual_seed(0)
    initialise(layer, "he")
    # the sample variance of 120000 draws is within 3 % at more than seven standard deviations
    assert float(layer.weight.detach().var()) == pytest.approx(2 / 400, rel=0.03)
    initialise(layer, "xavier")
    assert float(layer.weight.detach().var()) == pytest.approx(2 / 700, rel=0.03)
    assert not layer.bias.any()


def test_a_factory_argument_is_varied_and_its_depth_found() -> None:
    source = ModelSource(MLP)
    assert source.depth_argument() == ("depth", 3)
    deep = source.fresh(0, vary=(("depth", 6),))
    assert sum(isinstance(m, nn.Linear) for m in deep.modules()) == 7


def test_layers_are_added_where_the_factory_has_no_depth() -> None:
    setting = setting_of("sample_models/lenet.py:lenet")
    deep = setting.build(Trial("batch", 0, vary=((EXTRA, 2),)))
    convs = [m for m in deep.modules() if isinstance(m, nn.Conv2d)]
    linears = [m for m in deep.modules() if isinstance(m, nn.Linear)]
    assert (len(convs), len(linears)) == (2 * 3, 2 * 3 + 1)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in deep.modules()) == 6
    assert deep(*setting.example()).shape == (4, 10)
    assert torch.equal(convs[0].weight, setting.build(Trial("none", 0)).conv1.weight)


def test_every_seed_draws_its_own_weights() -> None:
    source = ModelSource(MLP)
    one, two, again = source.fresh(1), source.fresh(2), source.fresh(1)
    assert not torch.equal(one[1].weight, two[1].weight)
    assert torch.equal(one[1].weight, again[1].weight)
