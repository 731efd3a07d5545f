"""Norms that are called or held in other ways than a class's forward and a module's children."""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_hook

from bntool import apply_plan, fold, fold_
from bntool.edits import plan_of
from tests.folding import TOLERANCE, Block, ConvNorm, error, folded, names, outputs, prepared, reason

X = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0)).double()


class Sequence(ConvNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))  # type: ignore[no-any-return]


class Caller(nn.Module):
    """A block around a sequence, whose own forward tests replace."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.block = nn.Conv2d(4, 4, 1), Block(lambda m, x: m.norm(x), norm=nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.conv(x))  # type: ignore[no-any-return]


class Held(ConvNorm):
    """Calls its norm through what else holds it."""

    def __init__(self, hold: Callable[[nn.Module], Any], call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.held, self.call = hold(self.norm), call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.held, self.conv(x))


def in_place(model: nn.Module) -> Any:
    """Fold `model` itself. Returns: the report, once the outputs are what they were."""
    original = copy.deepcopy(model)
    report = fold_(model, X).report
    assert error(original, model, X) < TOLERANCE
    return report


def test_a_forward_given_to_one_layer_is_what_runs() -> None:
    model = Sequence()
    model.conv.forward = MethodType(lambda conv, x: conv._conv_forward(x, conv.weight, None) ** 2, model.conv)
    assert "pow" in reason(folded(model, X)[1])
    model = Sequence()
    model.norm.forward = lambda x: x * 2  # type: ignore[method-assign]
    assert "never calls it" in reason(folded(model, X)[1])


def test_a_forward_that_calls_the_original_is_not_folded_past() -> None:
    model = Caller()
    old = model.block.forward
    model.block.forward = lambda x: old(x) + 1  # type: ignore[method-assign]
    assert "cannot be traced" in reason(folded(model, X)[1])


def test_functions_that_a_model_holds_call_the_norms_they_were_made_with() -> None:
    closure = Held(lambda norm: lambda x: norm(x), lambda held, x: held(x))
    assert "cannot be traced" in reason(folded(closure, X)[1])
    listed = Held(lambda norm: [lambda x: norm(x)], lambda held, x: held[0](x))
    assert "cannot be traced" in reason(folded(listed, X)[1])
    weak = Held(weakref.ref, lambda held, x: held()(x))
    assert "cannot be traced" in reason(folded(weak, X)[1])
    inside = Held(lambda norm: SimpleNamespace(call=lambda x: norm(x)), lambda held, x: held.call(x))
    assert "cannot be traced" in reason(folded(inside, X)[1])
    named = Held(lambda norm: deque([Named(lambda x: norm(x), 0)]), lambda held, x: held[0].first(x))
    assert "cannot be traced" in reason(folded(named, X)[1])


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("patched", [nn.Conv2d, nn.ReLU, nn.BatchNorm2d])
def test_a_forward_given_to_a_class_of_torch_is_what_runs(
    patched: type[nn.Module], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = patched.forward
    monkeypatch.setattr(patched, "forward", lambda self, x: original(self, x) ** 2 - 1)
    layers = {"conv": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4), "act": nn.ReLU()}
    folded(Block(lambda m, x: m.act(m.norm(m.conv(x))), **layers), X, form=form)


@dataclass
class Pair:
    first: nn.Module
    second: int = 0


Named = namedtuple("Named", "first second")

HOLDERS: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Any, Tensor], Tensor]]] = {
    "partial": (lambda norm: partial(lambda layer, x: layer(x), norm), lambda held, x: held(x)),
    "dataclass": (Pair, lambda held, x: held.first(x)),
    "named tuple": (lambda norm: Named(norm, 0), lambda held, x: held.first(x)),
    "object": (lambda norm: SimpleNamespace(norm=norm), lambda held, x: held.norm(x)),
    "ordered": (lambda norm: OrderedDict(a=norm), lambda held, x: held["a"](x)),
    "deque": (lambda norm: deque([norm]), lambda held, x: held[0](x)),
    "weak": (weakref.ref, lambda held, x: held()(x)),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_in_place_a_norm_is_gone_wherever_it_is_held(holder: str) -> None:
    model = prepared(Held(*HOLDERS[holder]), X)
    want = model(X)
    report = fold_(model, X).report
    assert names(report.folded) == ["norm"]
    assert torch.allclose(model(X), want, rtol=TOLERANCE)


def test_a_call_of_a_norms_own_class_stays() -> None:
    class Doubled(nn.BatchNorm2d):
        def __call__(self, x: Tensor) -> Tensor:
            return 2 * super().__call__(x)  # type: ignore[no-any-return]

    model = Sequence()
    model.norm = Doubled(4)
    assert "__call__" in reason(folded(model, X)[1])
    assert names(folded(model, X, form="graph")[1].folded) == ["batch_norm"]


def test_a_graph_does_not_take_the_place_of_a_model_with_its_own_call() -> None:
    class Shifted(Sequence):
        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x) + 1  # type: ignore[no-any-return]

    model, report = folded(Shifted(), X, form="graph")
    assert isinstance(model, Shifted)
    assert names(report.folded) == ["norm"]


def test_hooks_on_all_modules_see_every_value() -> None:
    def doubled(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * 2 if isinstance(module, nn.Conv2d) else output

    handle = register_module_forward_hook(doubled)
    try:
        assert "hooks" in reason(folded(Sequence(), X)[1])
    finally:
        handle.remove()


def test_code_that_asks_what_a_norm_is_keeps_it() -> None:
    class Asking(ConvNorm):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self.children():
                x = torch.relu(layer(x)) if isinstance(layer, nn.BatchNorm2d) else layer(x)
            return x

    assert "asks what norm is" in reason(folded(Asking(), X)[1])

    class Harmless(ConvNorm):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self.children():
                x = layer(x) if isinstance(layer, nn.Module) and not isinstance(layer, nn.ReLU) else x
            return x

    assert names(folded(Harmless(), X)[1].folded) == ["norm"]


def test_a_weight_of_one_value_shown_several_times_is_written_in_place() -> None:
    model = Sequence()
    model.conv.weight = nn.Parameter(torch.randn(1, 4, 1, 1).expand(4, 4, 1, 1))
    model = prepared(model, X)
    model.conv.weight = nn.Parameter(torch.randn(1, 4, 1, 1).double().expand(4, 4, 1, 1))
    assert names(in_place(model).folded) == ["norm"]


class Around(nn.Module):
    """A sequence, and a weight of the model's own; `run` is the forward."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.weight = Sequence(), nn.Parameter(torch.randn(4, 4, 1, 1))
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def called_with(self: Any, x: Tensor) -> Tensor:
    return functional_call(self.inner, {"conv.weight": self.weight}, (x,))  # type: ignore[no-any-return]


def called_with_values(self: Any, x: Tensor) -> Tensor:
    others = {name: value * 2 for name, value in self.inner.named_parameters()}
    return functional_call(self.inner, others, (x,))  # type: ignore[no-any-return]


def swapped(self: Any, x: Tensor) -> Tensor:
    held = self.inner.conv._parameters
    own, held["weight"] = held["weight"], self.weight
    y = self.inner(x)
    held["weight"] = own
    return y  # type: ignore[no-any-return]


def other_eps(self: Any, x: Tensor) -> Tensor:
    self.inner.norm.eps = 0.5
    y = self.inner(x)
    self.inner.norm.eps = 1e-5
    return y  # type: ignore[no-any-return]


def train_mode(self: Any, x: Tensor) -> Tensor:
    self.inner.norm.training = True
    y = self.inner(x)
    self.inner.norm.training = False
    return y  # type: ignore[no-any-return]


def other_data(self: Any, x: Tensor) -> Tensor:
    self.inner.conv.weight.data = self.weight.data
    return self.inner(x)  # type: ignore[no-any-return]


MEANWHILE = [called_with, called_with_values, swapped, other_eps, train_mode, other_data]


@pytest.mark.parametrize("run", MEANWHILE, ids=lambda run: run.__name__)
@pytest.mark.parametrize("form", ["module", "graph"])
def test_what_a_forward_makes_of_a_layer_while_it_runs_is_what_counts(
    run: Callable[[Any, Tensor], Tensor], form: str
) -> None:
    torch.manual_seed(2)
    report = folded(Around(run), X, form=form)[1]
    goes = [called_with, swapped, other_eps]
    goes += [called_with_values] if form == "graph" else []  # which holds the values as weights of a layer
    assert len(report.folded) == (run in goes)


def test_without_inputs_nobody_knows_how_many_arguments_there_are() -> None:
    class Several(ConvNorm):
        def forward(self, *values: Tensor) -> Any:
            y = self.conv(values[0])
            return (y, self.norm(y)) if len(values) > 1 else self.norm(y)

    model = prepared(Several(), X)
    result = fold(model, verify=False)
    assert "cannot be traced" in reason(result.report)
    assert error(model, result.model, X, X) == 0


def test_code_that_cannot_be_traced_may_call_its_module_by_another_name() -> None:
    class Terse(Around):
        def forward(this, x: Tensor) -> Tensor:
            scale = float(x.sum())  # which nothing traced has
            return functional_call(this.inner, {"conv.weight": this.weight}, (x * scale,))  # type: ignore[no-any-return]

    assert "cannot be traced" in reason(folded(Terse(called_with), X)[1])


def test_numbers_of_a_folded_norm_can_still_be_read() -> None:
    class Reading(ConvNorm):
        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) * self.norm.num_features + self.norm.eps  # type: ignore[no-any-return]

    assert names(folded(Reading(), X)[1].folded) == ["norm"]
    assert names(in_place(prepared(Reading(), X)).folded) == ["norm"]
    fresh = apply_plan(Reading().eval().double(), plan_of(fold(prepared(Reading(), X), X).model))
    assert fresh(X).shape == X.shape


def test_a_graph_does_not_forget_what_a_hook_hands_back() -> None:
    class Seen(ConvNorm):
        def __init__(self) -> None:
            super().__init__()
            self.seen: Tensor | None = None
            self.conv.register_forward_pre_hook(self.see)

        def see(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
            self.seen = inputs[0] * 2

        def forward(self, x: Tensor) -> Any:
            return self.norm(self.conv(x)), self.seen

    for form in ("module", "graph"):
        assert len(outputs(folded(Seen(), X, form=form)[0], X)) == 2


class Pickled(Sequence):
    """Has its own idea of how it is copied."""

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)


@pytest.mark.parametrize("kind", [Sequence, Pickled])
def test_a_compressed_buffer_is_copied(kind: type[nn.Module]) -> None:
    model = kind()
    model.register_buffer("mask", torch.eye(3).to_sparse_csr())
    result, report = folded(model, X)
    assert names(report.folded) == ["norm"]
    assert result.mask is not model.mask


def test_a_nested_buffer_is_copied() -> None:
    torch.manual_seed(2)
    model = prepared(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), X)
    model.register_buffer("ragged", torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)]))
    assert len(fold(model, X, form="graph").report.folded) == 1
    ragged = fold(model, X).model.ragged
    assert [part.shape for part in ragged.unbind()] == [(2, 3), (4, 3)]
    assert ragged.data_ptr() != model.ragged.data_ptr()


@pytest.mark.parametrize("compressed", [torch.Tensor.to_sparse_csr, torch.Tensor.to_sparse_csc])
def test_a_compressed_parameter_stays_one(compressed: Callable[[Tensor], Tensor]) -> None:
    model = prepared(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), X)
    model.mask = nn.Parameter(compressed(torch.eye(3)), requires_grad=False)
    copied = fold(model, X).model.mask
    assert isinstance(copied, nn.Parameter)
    assert torch.equal(copied.to_dense(), torch.eye(3))
