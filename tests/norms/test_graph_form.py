"""Graph form: it trains as the module does, keeps what watches it, and its plan makes it anew."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bntool
from bntool.errors import LoadError, UsageError
from bntool.tracing import described, restored
from sample_models.mlp import mlp
from sample_models.vgg import vgg
from tests.norms.nets import randomized


class Net(nn.Module):
    """Functions where modules could be: a convolution, an activation, a dropout, a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3) * 0.2)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x)) * torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
        x = F.relu(F.conv2d(x, self.weight)).mean((2, 3))
        return self.head(F.dropout(x, 0.5, self.training))


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> Net:
    torch.manual_seed(2)
    return Net().eval()


def test_dropout_by_function_call_still_follows_the_mode() -> None:
    made = bntool.insert(net(), images(), form="graph").model
    assert torch.equal(made(images()), made(images()))
    assert not torch.equal(made.train()(images()), made(images()))
    assert not made.eval().dropout.training


def test_a_dropout_that_is_never_on_stays_off() -> None:
    class Off(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.dropout(F.relu(self.conv(x)).mean((2, 3)), 0.5, training=False))

    made = bntool.insert(Off().eval(), images(), form="graph").model
    assert not any(isinstance(m, nn.Dropout) for m in made.modules())


def test_a_forward_that_differs_in_train_mode_is_said_to() -> None:
    class Auxiliary(Net):
        def forward(self, x: Tensor) -> Any:
            x = F.relu(self.conv(x)).mean((2, 3))
            return (self.head(x), x) if self.training else self.head(x)

    report = bntool.insert(Auxiliary().eval(), images(), form="graph").report
    assert "another way" in report.notes[0]
    assert not bntool.insert(net(), images(), form="graph").report.notes


def test_hooks_of_the_model_and_of_its_parts_go_along() -> None:
    seen: list[str] = []
    outer = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), net()).eval()
    outer[2].register_forward_hook(lambda *_: seen.append("part"))
    outer.register_forward_hook(lambda *_: seen.append("whole"))
    result = bntool.insert(outer, images(), form="graph")
    seen.clear()
    result.model(images())
    assert seen == ["part", "whole"]
    assert [e.layer for e in result.report.inserted] == ["0"], "a part that is watched is not looked into"


@pytest.mark.parametrize("factory", [net, vgg, mlp])
def test_a_plan_makes_the_graph_anew(factory: Any) -> None:
    x = {net: images(), vgg: torch.randn(4, 3, 32, 32), mlp: torch.randn(4, 64)}[factory]
    made = bntool.insert(factory().eval(), x, form="graph")
    again = bntool.apply_plan(factory(), json.loads(json.dumps(made.report.plan)))
    again.load_state_dict(made.model.state_dict())
    assert torch.equal(again.eval()(x), made.model(x))
    assert torch.equal(again(x[:1]), made.model(x[:1])), "the sizes of the example do not stick"


@pytest.mark.parametrize("where", ["after-activation", "before-layer"])
def test_a_plan_knows_where(where: str) -> None:
    made = bntool.insert(net().double(), images().double(), form="graph", where=where)
    again = bntool.apply_plan(net().double(), made.report.plan)
    again.load_state_dict(made.model.state_dict())
    assert torch.equal(again.eval()(images().double()), made.model(images().double()))


def test_copies_keep_the_plan_and_later_edits_join_it() -> None:
    made = bntool.insert(net(), images(), form="graph").model
    swapped = bntool.replace(copy.deepcopy(made), "ghost").model
    again = bntool.apply_plan(Net(), bntool.edits.plan_of(swapped))
    again.load_state_dict(swapped.state_dict())
    assert torch.equal(again.eval()(images()), made(images()))


def test_a_plan_that_does_not_fit_is_one_message() -> None:
    plan = json.loads(json.dumps(bntool.insert(net(), images(), form="graph").report.plan))
    call = next(e for e in plan["edits"] if e["op"] == "call")
    call["node"] = "nonsense"
    with pytest.raises(LoadError, match="nonsense"):
        bntool.apply_plan(Net(), plan)
    with pytest.raises(LoadError, match="not a graph"):
        bntool.apply_plan(Net(), {"schema_version": 1, "edits": [call]})


def test_inputs_are_noted_by_their_sizes() -> None:
    inputs = ((torch.zeros(2, 3, dtype=torch.int64), None, [1, 2.5, "word"]), {"mask": (torch.ones(1), True)})
    back = restored(json.loads(json.dumps(described(inputs))))
    assert back[0][0].shape == (2, 3)
    assert back[0][0].dtype == torch.int64
    assert back[0][1:] == (None, [1, 2.5, "word"])
    assert back[1]["mask"][1] is True
    with pytest.raises(UsageError, match="complex"):
        described(1j)


def test_both_forms_leave_the_same_convolutions_out() -> None:
    class Gate(nn.Module):
        """A squeeze-and-excite gate, whose convolutions see one value per sample."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.down, self.up = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(x))
            gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
            return self.head((x * gate).mean((2, 3)))

    reports = [bntool.insert(Gate().eval(), images(), form=form).report for form in ("module", "graph")]
    assert reports[0].left_out == reports[1].left_out
    assert [e.layer for e in reports[1].inserted] == ["conv"]


# --- graphs as objects: pickled, called with less, called with what a trace cannot follow


class InPlace(nn.Module):
    """A value changed under its later reader: `y * k` reads what `y *= 2` and `y[:, 0] = 0` left."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        k = y
        y *= 2
        y[:, 0] = 0
        return self.out(F.relu(self.b(y * k)))


@pytest.mark.parametrize("verb", [bntool.insert, bntool.fold])
@pytest.mark.parametrize("kind", [Net, InPlace])
def test_a_graph_is_pickled_and_read_back(verb: Any, kind: type[nn.Module]) -> None:
    torch.manual_seed(2)
    made = verb(kind().eval(), images(), form="graph").model
    again = pickle.loads(pickle.dumps(made))
    assert torch.equal(again.eval()(images()), made.eval()(images()))


class Optional(nn.Module):
    """Arguments that may be left out; `scale is None` cannot be asked of a traced value."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor, scale: Tensor | None = None, *, twice: bool | None = None) -> Tensor:
        if scale is not None:
            x = x * scale
        x = self.out(F.relu(self.norm(self.conv(x))))
        return x if twice is None else 2 * x


@pytest.mark.parametrize("verb", [bntool.insert, bntool.fold])
def test_arguments_that_the_example_leaves_out_are_none_of_the_graph(verb: Any) -> None:
    model = randomized(Optional())
    scale = torch.rand(4, 1, 1, 1)
    for example in (images(), {"x": images()}):
        made = verb(model, example, form="graph").model
        assert torch.allclose(made(images()), model(images()), atol=1e-5)
        with pytest.raises(TypeError):  # not left aside without a word
            made(images(), scale)
    made = verb(model, (images(), scale), form="graph").model
    assert torch.allclose(made(images(), scale), model(images(), scale), atol=1e-5)


def test_a_plan_of_such_a_graph_and_a_note_of_what_it_does_not_take() -> None:
    model = Optional().eval()
    model.norm = nn.Identity()
    result = bntool.insert(model, images(), form="graph")
    assert "the graph takes no scale, twice, which the example inputs leave out" in result.report.notes
    fresh = Optional()
    fresh.norm = nn.Identity()
    again = bntool.apply_plan(fresh, json.loads(json.dumps(result.report.plan)))
    again.load_state_dict(result.model.state_dict())
    assert torch.equal(again.eval()(images()), result.model(images()))


def test_tracing_does_not_move_a_spectral_norms_vectors() -> None:
    torch.manual_seed(0)
    model = net()
    nn.utils.parametrizations.spectral_norm(model.conv)
    made = bntool.insert(model.eval(), images(), form="graph").model
    assert torch.allclose(made(images()), model(images()), atol=1e-5)


class Forces(nn.Module):
    """A gradient inside forward: a graph does not carry under which mode its calls run."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.out(torch.tanh(self.b(torch.tanh(self.a(x))))).sum()
            return -torch.autograd.grad(energy, x)[0]


def test_what_does_not_run_as_a_graph_is_refused_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    model, x = Forces().eval(), torch.randn(6, 3)
    with pytest.raises(UsageError, match="cannot be traced whole"):
        bntool.insert(model, x, form="graph")
    assert not capsys.readouterr().err
    assert len(bntool.insert(model, x).report.inserted) == 2
