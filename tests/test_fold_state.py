"""What a forward changes on its modules: it is taken back, and what it does to later calls is not lost."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bntool.fold import fold, fold_
from tests.folding import Block, ConvNorm, error, names, outputs, prepared

X = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
FORMS = ({}, {"form": "graph"}, {"form": "graph", "merge": True, "split": True})


class Box:
    """An object of the user's own."""

    def __init__(self) -> None:
        self.calls, self.order, self.last = 0, [0, 1, 3, 2], None


class Stateful(ConvNorm):
    """A convolution and a norm beside every sort of thing that a module may hold."""

    def __init__(self, change: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.change = change
        self.nested: dict[str, Any] = {"values": [], "numbers": {"calls": 1}}
        self.recent, self.by_name, self.counter = deque([1], maxlen=3), defaultdict(list), Counter(calls=1)
        self.sequence, self.unique = OrderedDict(a=1, b=2), {1}
        self.box, self.space, self.array = Box(), SimpleNamespace(calls=1), np.ones(3)
        self.pair: tuple[list[int], int] = ([1], 2)
        self.order = [0, 1, 3, 2]
        self.plain, self.index = torch.full((4, 1, 1), 2.0, dtype=torch.float64), torch.tensor([0, 1, 3, 2])
        self.register_buffer("places", torch.tensor([0, 1, 3, 2]))

    def forward(self, x: Tensor) -> Any:
        return self.change(self, x)


def run(self: Any, x: Tensor) -> Any:
    return self.norm(self.conv(x))


def nested_list(self: Any, x: Tensor) -> Any:
    self.nested["values"].append(run(self, x))
    return self.nested["values"][-1]


def nested_number(self: Any, x: Tensor) -> Any:
    self.nested["numbers"]["calls"] += 1
    return run(self, x) * self.nested["numbers"]["calls"]


def queue(self: Any, x: Tensor) -> Any:
    self.recent.append(x.shape)
    return run(self, x)


def named_lists(self: Any, x: Tensor) -> Any:
    self.by_name["x"].append(1)
    return run(self, x) * len(self.by_name["x"])


def counted(self: Any, x: Tensor) -> Any:
    self.counter["calls"] += 1
    return run(self, x) * self.counter["calls"]


def turned(self: Any, x: Tensor) -> Any:
    self.sequence.move_to_end(next(iter(self.sequence)))
    return run(self, x) * next(iter(self.sequence.values()))


def unique(self: Any, x: Tensor) -> Any:
    self.unique.add(len(self.unique) + 1)
    return run(self, x) * len(self.unique)


def object_value(self: Any, x: Tensor) -> Any:
    self.box.last = run(self, x)
    return self.box.last


def object_number(self: Any, x: Tensor) -> Any:
    self.box.calls += 1
    return run(self, x) * self.box.calls


def object_order(self: Any, x: Tensor) -> Any:
    self.box.order = self.box.order[1:] + self.box.order[:1]
    return self.norm(self.conv(x)[:, self.box.order])


def namespace(self: Any, x: Tensor) -> Any:
    self.space.calls += 1
    return run(self, x) * self.space.calls


def array(self: Any, x: Tensor) -> Any:
    self.array[0] += 1
    return run(self, x) * float(self.array[0])


def list_in_tuple(self: Any, x: Tensor) -> Any:
    self.pair[0].append(1)
    return run(self, x) * len(self.pair[0])


def list_order(self: Any, x: Tensor) -> Any:
    self.order.append(self.order.pop(0))
    return self.norm(self.conv(x)[:, list(self.order)])


def tensor_replaced(self: Any, x: Tensor) -> Any:
    self.plain = self.plain + 1
    return run(self, x) * self.plain


def tensor_read_then_replaced(self: Any, x: Tensor) -> Any:
    y = run(self, x) * self.plain
    self.plain = self.plain * 2
    return y


def tensor_in_place(self: Any, x: Tensor) -> Any:
    self.plain.add_(1)
    return run(self, x) * self.plain


def index_replaced(self: Any, x: Tensor) -> Any:
    self.index = self.index.roll(1)
    return self.norm(self.conv(x)[:, self.index])


def index_in_place(self: Any, x: Tensor) -> Any:
    self.index.copy_(self.index.roll(1))
    return self.norm(self.conv(x)[:, self.index])


def buffer_in_place(self: Any, x: Tensor) -> Any:
    self.places.copy_(self.places.roll(1))
    return self.norm(self.conv(x)[:, self.places])


def buffer_view_in_place(self: Any, x: Tensor) -> Any:
    self.places.view(4).sub_(1).remainder_(4)
    return self.norm(self.conv(x)[:, self.places])


def weight_in_place(self: Any, x: Tensor) -> Any:
    with torch.no_grad():
        self.conv.weight.mul_(1.1)
    return run(self, x)


def weight_data(self: Any, x: Tensor) -> Any:
    self.conv.weight.data = self.conv.weight.data * 1.1
    return run(self, x)


CHANGES = (
    *(nested_list, nested_number, queue, named_lists, counted, turned, unique, object_value, object_number),
    *(object_order, namespace, array, list_in_tuple, list_order, tensor_replaced, tensor_read_then_replaced),
    *(tensor_in_place, index_replaced, index_in_place, buffer_in_place, buffer_view_in_place),
    *(weight_in_place, weight_data),
)


def seen(model: Any) -> str:
    """All that a module holds, written out."""
    parts = [vars(model), vars(model.conv), vars(model.norm), vars(model.box), model.state_dict()]
    return str([{k: v for k, v in held.items() if k != "change"} for held in parts])


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_fold_leaves_the_state_of_a_forward_and_what_it_does_to_later_calls(
    change: Callable[[Any, Tensor], Any],
) -> None:
    torch.manual_seed(2)
    fresh = prepared(Stateful(run), X)
    fresh.change = change
    for options in FORMS:
        model, same = copy.deepcopy(fresh), copy.deepcopy(fresh)
        before = seen(model)
        folded = fold(model, X, verify=False, **options).model
        assert seen(model) == before
        for factor in (1, 2, 3):
            assert error(same, folded, factor * X) < 1e-12


def test_a_forward_that_remembers_no_more_than_it_did_is_traced_as_ever() -> None:
    def remembers(self: Any, x: Tensor) -> Any:
        self.box.calls, self.box.last = 7, [x.shape[2], {"size": x.shape}]
        self.nested["size"] = x.shape[3]
        return run(self, x)

    model = prepared(Stateful(run), X)
    model.change = remembers
    assert names(fold(model, X, verify=False).report.folded) == ["norm"]
    assert model.box.last is None


@pytest.mark.parametrize("called", [False, True])
def test_a_cache_of_what_is_computed_from_parameters_keeps_no_norm(called: bool) -> None:
    """Its keys are words that a trace makes other ones of, as LeViT's are."""

    def caches(self: Any, x: Tensor) -> Any:
        key = str(x.device)
        if key not in self.cache:
            self.cache[key] = self.table[:, self.index]
        return run(self, x) + self.cache[key]

    model: Any = prepared(Block(run, conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)), X)
    model.function, model.cache, model.index = caches, {}, torch.tensor([0, 1, 1, 0, 1])
    model.table = nn.Parameter(torch.randn(5, 2, dtype=torch.float64))
    if called:
        model(X)
    result = fold(model, X, verify=False)
    assert names(result.report.folded) == ["norm"]
    assert len(model.cache) == called
    assert error(model, result.model, X) < 1e-12


def test_a_hook_that_a_forward_gives_a_layer_for_a_while_is_not_lost_in_a_graph() -> None:
    def hooked(self: Any, x: Tensor) -> Any:
        handle = self.conv.register_forward_hook(lambda module, args, output: output * 2)
        y = run(self, x)
        handle.remove()
        return y

    model = prepared(Block(hooked, conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)), X)
    for options in FORMS:
        assert error(model, fold(model, X, verify=False, **options).model, X) < 1e-12


@pytest.mark.parametrize(
    "alias",
    [
        lambda weight: weight.detach(),
        lambda weight: weight.data[0],
        lambda weight: [weight.data],
    ],
    ids=["whole", "part", "list"],
)
def test_a_weight_that_is_read_as_another_tensor_stays_what_it_is(alias: Callable[[Tensor], Any]) -> None:
    def reads(self: Any, x: Tensor) -> Any:
        return run(self, x) + (self.alias[0] if isinstance(self.alias, list) else self.alias).sum()

    def made() -> Any:
        torch.manual_seed(2)
        model = prepared(Block(run, conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)), X)
        model.function, model.alias = reads, alias(model.conv.weight)
        return model

    model = made()
    fold_(model, X)
    assert error(made(), model, X) < 1e-12


class Slots(nn.Module):
    """Keeps a tensor where no dictionary of attributes has it."""

    __slots__ = ("gain",)

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.tensor([2.0, -1.0, 3.0, 0.5], dtype=torch.float64).view(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


@pytest.mark.parametrize("compiled", [False, True])
def test_slots_are_copied(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where torch.compile has run, which puts another `__setstate__` in all modules."""
    if compiled:
        monkeypatch.setattr(nn.Module, "__setstate__", lambda self, state: self.__dict__.update(state))
    model = prepared(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), Slots()), X)
    for options in FORMS:
        folded = fold(model, X, **options).model
        assert error(model, folded, X) < 1e-12
    assert fold(model, X).model[2].gain.data_ptr() != model[2].gain.data_ptr()


def test_a_weight_that_a_class_holds_is_a_layers_in_a_graph() -> None:
    class Holds(ConvNorm):
        weight = torch.randn(4, 4, 1, 1, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(F.conv2d(x, self.weight))  # type: ignore[no-any-return]

    model, before = prepared(Holds(), X), Holds.weight.clone()
    result = fold(model, X, form="graph")
    assert names(result.report.folded) == ["norm"]
    assert torch.equal(Holds.weight, before)
    assert outputs(model, X)[0].shape == outputs(result.model, X)[0].shape
