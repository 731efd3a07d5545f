"""Inputs of every shape: nested, written into by the model, or such as the model does not take."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bntool
from bntool.errors import LoadError, RunError, UsageError
from bntool.health import health
from bntool.norms.stand_in import Normed
from tests.norms.nets import randomized

ROOT = Path(__file__).resolve().parents[2]


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Scribbler(nn.Module):
    """Writes into its input: a second run on the same tensor gives something else."""

    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.conv, self.next, self.out = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.next(F.relu(self.norm(self.conv(x.sub_(0.5).mul_(3.0)))))))


def scribbler(*, norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return randomized(Scribbler(norm=norm))


VERBS: dict[str, Callable[[Tensor], Any]] = {
    "insert": lambda x: bntool.insert(scribbler(), x, data=[x, x], form="module"),
    "insert, a graph": lambda x: bntool.insert(scribbler(), x, data=[x, x], form="graph"),
    "unfold": lambda x: bntool.unfold(scribbler(), x),
    "calibrate in lockstep": lambda x: bntool.calibrate(scribbler(norm=True), [x, x], method="lockstep"),
    "calibrate in passes": lambda x: bntool.calibrate(
        scribbler(norm=True), [x, x], method="passes", compare=True
    ),
    "replace": lambda x: bntool.replace(scribbler(norm=True), "frozen", example_inputs=x),
    "fold": lambda x: bntool.fold(scribbler(norm=True), x),
    "fold, a graph": lambda x: bntool.fold(scribbler(norm=True), x, form="graph", merge=True),
    "verify": lambda x: bntool.verify(scribbler(), scribbler(), x).insist(),
    "health": lambda x: health(scribbler(norm=True), x),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_that_writes_into_its_input_writes_into_a_copy(verb: str) -> None:
    given = images()
    VERBS[verb](given)
    assert torch.equal(given, images())


def test_such_a_model_keeps_its_function_and_is_calibrated_on_the_data_as_it_is() -> None:
    plain, x = scribbler(), images()
    for form in ("module", "graph"):
        made = bntool.insert(plain, x, data=[x], form=form)
        assert [e.layer for e in made.report.inserted] == ["conv", "next"]
        assert torch.allclose(made.model(x.clone()), plain(x.clone()), atol=1e-5)
    normed = scribbler(norm=True)
    read = normed.conv(x.sub(0.5).mul(3.0)).detach().double().transpose(0, 1).flatten(1)
    for method in ("lockstep", "passes"):
        norm = bntool.calibrate(normed, [x], method=method).model.norm
        assert torch.allclose(norm.running_mean.double(), read.mean(1), atol=1e-5)
        assert torch.allclose(norm.running_var.double(), read.var(1), rtol=1e-5)
    plain(x)
    assert not torch.equal(x, images()), "it would show if it were not on a copy"


class Nested(nn.Module):
    """A dict that holds a list, and a keyword that must be given by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, batch: dict[str, Any], *, flip: bool = False) -> dict[str, list[Tensor]]:
        found = [F.relu(self.norm(self.conv(x))) for x in batch["images"]]
        return {"scores": [self.head(x.flip(3) if flip else x).mean((2, 3)) for x in found[:1]]}


def test_nested_inputs_are_counted_cut_and_copied() -> None:
    model, x = randomized(Nested()), {"images": [images()]}
    model.head = nn.Conv2d(4, 2, 1)
    result = bntool.calibrate(model, [({"images": [images()]}, "label"), ({"images": [images(4)]}, "label")])
    assert result.report.samples == 10
    inserted = bntool.insert(bntool.fold(model, (x,)).model, (x,), layers="all", exclude=["head"])
    assert inserted.report.batch_size == 6
    assert inserted.report.samples >= 32, "random inputs like them, wherever the tensors are"
    assert inserted.report.train[1].relative_change is not None


# --- what a model does not take


@pytest.mark.parametrize("method", ["lockstep", "passes"])
@pytest.mark.parametrize("shape", [(6, 5, 8, 8), (6, 3, 2, 2)])
def test_data_it_does_not_take_are_one_message_with_batch_and_shapes(
    method: str, shape: tuple[int, ...]
) -> None:
    given = "x".join(map(str, shape))
    wanted = rf"^batch 1 of the data, {given}:float32: the model raised RuntimeError.*It takes \(x\)"
    batches = [images(), torch.randn(shape)]
    with pytest.raises(RunError, match=wanted) as caught:
        bntool.calibrate(scribbler(norm=True), batches, method=method)
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(RunError, match=wanted):
        bntool.insert(scribbler(), images(), data=batches)


def test_example_inputs_it_does_not_take_are_one_message_in_every_verb() -> None:
    wanted = "^the inputs, 6x5x8x8:float32: the model raised RuntimeError"
    for verb in ("insert", "unfold", "replace", "verify", "health"):
        with pytest.raises(RunError, match=wanted):
            VERBS[verb](torch.randn(6, 5, 8, 8))


def test_a_tensor_alone_is_not_taken_for_its_rows() -> None:
    for data in (images(), {"x": images()}):
        with pytest.raises(UsageError, match="not an iterable of batches"):
            bntool.calibrate(scribbler(norm=True), data)


def test_data_that_raise_are_one_message() -> None:
    def broken() -> Iterator[Tensor]:
        yield images()
        raise OSError("the disk is gone")

    with pytest.raises(LoadError, match=r"^batch 1 of the data: the data raised OSError: the disk is gone"):
        bntool.calibrate(scribbler(norm=True), broken())


def lazy() -> nn.Sequential:
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Conv2d(4, 2, 1))


def test_lazy_norms_get_their_sizes_from_the_data() -> None:
    result = bntool.calibrate(lazy(), [images()])
    assert [e.name for e in result.report.calibrated] == ["1"]
    read = result.model[0](images()).detach().transpose(0, 1).flatten(1)
    assert torch.allclose(result.model[1].running_mean, read.mean(1), atol=1e-6)
    for form in ("module", "graph"):
        with pytest.raises(RunError, match=r"^the inputs, 4x5:float32: the model raised"):
            bntool.fold(lazy(), torch.randn(4, 5), form=form)


def test_verbs_take_a_reference_and_the_inputs_its_file_names() -> None:
    vgg, resnet = (f"{ROOT}/sample_models/{name}.py:{name}" for name in ("vgg", "resnet"))
    assert bntool.insert(vgg).report.inserted
    assert bntool.replace(resnet, "group").report.eval is not None
    assert bntool.inspect(resnet).health.sizes
    folded = bntool.fold(resnet)
    assert len(bntool.unfold(folded.model, torch.randn(2, 1, 8, 8)).report.inserted) == folded.report.found
    assert bntool.calibrate(resnet, [torch.randn(4, 1, 8, 8)]).report.calibrated
    with pytest.raises(UsageError, match="no example inputs are known"):
        bntool.insert(nn.Conv2d(3, 4, 1))


class Masked(nn.Module):
    """Takes a mask, with which it computes by a call of its own: in a graph that call is the graph's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.out(torch.relu(self.conv(x)) * mask)


GIVEN_WRONG: dict[str, Callable[[nn.Module, Any], Any]] = {
    "insert": lambda model, x: bntool.insert(model, x),
    "calibrate": lambda model, x: bntool.calibrate(model, [x], inputs=2),
    "replace": lambda model, x: bntool.replace(model, "frozen", example_inputs=x),
    "fold": lambda model, x: bntool.fold(model, x),
    "fold, merging": lambda model, x: bntool.fold(model, x, form="graph", merge=True),
    "verify": lambda model, x: bntool.verify(model, model, x),
    "inspect": lambda model, x: bntool.inspect(model, x),
}


@pytest.mark.parametrize("verb", GIVEN_WRONG)
def test_a_graph_given_wrong_inputs_is_one_message(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    graph = bntool.insert(randomized(Masked()), (images(), torch.ones(6, 1, 1, 1)), form="graph").model
    with pytest.raises(RunError, match="the model raised RuntimeError: The size of tensor a"):
        GIVEN_WRONG[verb](graph, (images(), torch.ones(6, 1, 2, 2)))
    assert not capsys.readouterr().err


def test_one_glob_is_one_glob_and_not_its_letters() -> None:
    plain = nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 4, 3), relu=nn.ReLU(), head=nn.Conv2d(4, 2, 1)))
    x = torch.randn(4, 3, 6, 6)
    normed = bntool.insert(plain, x, include="st*").model
    assert isinstance(normed.stem, Normed)
    assert bntool.fold(normed, x, keep="stem.*").report.folded == []
    assert bntool.fold_(copy.deepcopy(normed), x, keep="stem.*").report.folded == []
    assert bntool.calibrate(normed, [x], include="stem.norm").report.calibrated
    assert bntool.replace(normed, "group", exclude="stem.norm").report.replaced == []


@pytest.mark.parametrize(
    ("option", "value"),
    [("eps", -1.0), ("momentum", 2.0), ("groups", 0), ("virtual_batch_size", 0), ("batch_size", 0)],
)
def test_numbers_that_no_norm_can_have_are_named(option: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{option}: no norm can have it: {value}"):
        bntool.insert(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(4, 3, 6, 6), **{option: value}
        )


def test_an_empty_batch_is_none() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.randn(4, 3, 6, 6)
    assert bntool.insert(model, x, data=[x[:0], x, x[:0]]).report.samples == 4
    for verb in (bntool.insert, bntool.inspect, bntool.unfold):
        with pytest.raises(UsageError, match="the inputs are empty"):
            verb(model, x[:0])
