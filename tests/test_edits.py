"""Edits: each operation, that they travel with copies, and that a plan from a file cannot run code."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

from bntool.edits import apply, apply_plan, plan_of, recorded
from bntool.errors import LoadError
from bntool.fold import fold, fold_
from tests.random_norms import randomise_norms

NORM = {"type": "torch.nn.BatchNorm2d", "args": {"num_features": 4, "eps": 0.01}}


def net() -> nn.Sequential:
    inner = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(inner, nn.Conv2d(4, 4, 1)).double().eval()


EDITS: list[dict[str, Any]] = [
    {"op": "replace", "path": "0.1", "module": {"type": "torch.nn.Identity"}},
    {"op": "add_bias", "path": "0.0", "size": 4},
    {"op": "drop_bias", "path": "1"},
    {"op": "insert", "path": "0", "index": 1, "module": NORM},
]


def test_a_plan_rebuilds_the_structure_that_the_edits_made() -> None:
    edited = net()
    for edit in EDITS:
        apply(edited, edit)
    rebuilt = apply_plan(net(), plan_of(edited))
    assert repr(rebuilt) == repr(edited)
    rebuilt.load_state_dict(edited.state_dict(), strict=True)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(rebuilt(x), edited(x))
    norm = rebuilt[0][1]
    assert (norm.eps, norm.weight.dtype, norm.training) == (0.01, torch.float64, False)


def test_edits_that_a_model_has_already_are_not_made_again() -> None:
    edited, half = net(), net()
    for edit in EDITS:
        apply(edited, edit)
    for edit in EDITS[:2]:
        apply(half, edit)
    plan = json.loads(json.dumps(plan_of(edited)))
    for model in (half, edited):
        assert repr(apply_plan(model, plan)) == repr(edited)
        assert recorded(model) == EDITS


def test_the_report_of_a_fold_has_its_plan() -> None:
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    model = randomise_norms(net(), [x])
    result = fold(model, x)
    plan = json.loads(json.dumps(result.report.to_dict()))["plan"]
    fresh = apply_plan(net(), plan)
    fresh.load_state_dict(result.model.state_dict(), strict=True)
    torch.testing.assert_close(fresh(x), model(x))
    assert fold_(model, x).report.plan == plan
    assert fold(net(), x, form="graph").report.plan == {}


def test_copies_keep_the_record_and_do_not_share_it() -> None:
    first = net()
    apply(first, EDITS[0])
    second = copy.deepcopy(first)
    apply(second, EDITS[1])
    assert recorded(first) == EDITS[:1]
    assert recorded(second) == EDITS[:2]


def test_a_module_with_two_names_is_replaced_under_both() -> None:
    norm = nn.BatchNorm1d(3)
    model = nn.ModuleDict({"a": norm, "b": nn.Sequential(norm)})
    apply(model, {"op": "replace", "path": "a", "module": {"type": "torch.nn.Identity"}})
    assert isinstance(model["a"], nn.Identity)
    assert model["b"][0] is model["a"]


@pytest.mark.parametrize(
    "plan",
    [
        {},
        [],
        {"schema_version": 2, "edits": []},
        {"schema_version": 1, "edits": [3]},
        {"schema_version": 1, "edits": [{"op": "eval", "path": "1"}]},
        {"schema_version": 1, "edits": [{"op": "replace", "path": "7", "module": NORM}]},
        {"schema_version": 1, "edits": [{"op": "replace", "path": "1"}]},
        {"schema_version": 1, "edits": [{"op": "replace", "path": "1", "module": {"type": "os.system"}}]},
        {"schema_version": 1, "edits": [{"op": "replace", "path": "1", "module": {"type": "torch.nn.init"}}]},
        {"schema_version": 1, "edits": [{"op": "replace", "path": "1", "module": {"type": "torch.nn.Foo"}}]},
        {"schema_version": 1, "edits": [{"op": "insert", "path": "1", "index": 0, "module": NORM}]},
    ],
)
def test_a_plan_that_does_not_fit_is_one_message(plan: Any) -> None:
    with pytest.raises(LoadError):
        apply_plan(net(), plan)
