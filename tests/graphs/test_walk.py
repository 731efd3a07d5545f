"""The same modules under the same names in the same order as torch's own walk."""

from __future__ import annotations

from torch import nn

from bntool.graphs.walk import modules_in
from tests.vision import network


def test_shared_and_missing_modules() -> None:
    shared = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 1))
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleList([shared, nn.Identity()]), "c": shared[1]})
    model.register_module("none", None)
    model["b"].add_module("up", shared[0])
    assert modules_in(model) == list(model.named_modules())
    assert modules_in(model, every_name=True) == list(model.named_modules(remove_duplicate=False))


def test_a_real_model() -> None:
    model = network("torchvision", "googlenet")
    assert modules_in(model) == list(model.named_modules())
