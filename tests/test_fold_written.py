"""Forwards as widely used libraries write them: layers made on the way, decorators, losses beside outputs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bntool
from bntool.fold import fold
from tests.folding import TOLERANCE, Block, ConvNorm, error, folded, names, outputs, prepared

X = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(17), dtype=torch.float64)


def body() -> nn.Sequential:
    layers = [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)]
    return nn.Sequential(*layers)


MADE_IN_FORWARD: dict[str, Callable[[Any, Tensor], Any]] = {
    "slices": lambda self, x: [y := self.body[:3](x), self.body[3:](y)],
    "a Sequential of children": lambda self, x: nn.Sequential(*list(self.body.children())[:2])(x),
    "functions as modules": lambda self, x: nn.Softmax(dim=1)(nn.ReLU(inplace=True)(self.body(x))),
    "of several sizes": lambda self, x: nn.AdaptiveAvgPool2d(2)(nn.Upsample(scale_factor=2)(self.body(x))),
}


@pytest.mark.parametrize("name", MADE_IN_FORWARD)
def test_modules_that_the_forward_makes_are_looked_into(name: str) -> None:
    _, report = folded(Block(MADE_IN_FORWARD[name], body=body()), X)
    assert not [k for k in report.kept if "never" not in k.reason]


def test_a_layer_that_the_forward_makes_is_no_layer_of_the_model() -> None:
    made = nn.Conv2d(4, 4, 1).double()
    model = prepared(Block(lambda self, x: nn.Sequential(made, self.norm)(x), norm=nn.BatchNorm2d(4)), X)
    result = fold(model, (X,))
    assert names(result.report.kept) == ["norm"]
    assert error(model, result.model, X) == 0


def outer(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("as_tuple", None)
        return forward(self, *args, **kwargs)

    return call


class KeywordOnly(ConvNorm):
    @outer
    def forward(self, x: Tensor, *, times: float = 2.0, more: Tensor | None = None) -> Tensor:
        y = self.norm(self.conv(x)) * times
        return y if more is None else y + more


class HandsOn(ConvNorm):
    @outer
    @torch.no_grad()
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self._both(x, **kwargs)

    def _both(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.norm(self.conv(x)) * scale


class Further(ConvNorm):
    @outer
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.norm(x) if kwargs.get("early") else self.norm(self.conv(x))


class Predicts(ConvNorm):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.predict(x, *args, **kwargs)

    def predict(self, x: Tensor, profile: bool = False, **kwargs: Any) -> Tensor:
        return self.norm(self.conv(x))


@pytest.mark.parametrize("kind", [KeywordOnly, HandsOn, Predicts])
def test_a_decorated_forward_is_given_what_it_takes(kind: type[nn.Module]) -> None:
    model = prepared(kind(), X)
    result = fold(model, (X,))
    assert not result.report.kept
    without = "*args, **kwargs" if kind is Predicts else "**kwargs"
    assert result.report.notes == [f"for calls without {without}: those with them are not followed"]
    assert error(model, result.model, X[:2]) < TOLERANCE


def test_keyword_arguments_of_a_decorated_forward_keep_their_ways() -> None:
    model = prepared(KeywordOnly(), X)
    changed = fold(model, (X,)).model
    for named in ({"times": 3.0}, {"more": X}, {"more": X, "times": 0.5}):
        assert torch.allclose(model(X, **named), changed(X, **named), rtol=0, atol=1e-10)


def test_arguments_that_cannot_be_followed_are_said_to_be_left_out() -> None:
    model = prepared(Further(), X)
    result = fold(model, (X,))
    assert not result.report.kept
    (note,) = result.report.notes
    assert note == "for calls without **kwargs: those with them cannot be traced"


class FurtherItself(ConvNorm):
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        kwargs.setdefault("scale", 2.0)
        return self.scaled(x, **kwargs)

    def scaled(self, x: Tensor, scale: float) -> Tensor:
        return self.norm(self.conv(x)) * scale


def test_arguments_that_a_forward_fills_in_are_as_the_inputs_leave_them() -> None:
    model = prepared(FurtherItself(), X)
    result = fold(model, (X,))
    assert not result.report.kept
    assert result.report.notes == ["for calls without **kwargs: those with them cannot be traced"]
    assert error(model, result.model, X) < TOLERANCE


def remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    remembered = functools.lru_cache(maxsize=8)(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return remembered(*args, **kwargs)

    return call


class Positions(ConvNorm):
    """What it adds is remembered for sizes, by a decorator."""

    @staticmethod
    @remembering
    def grid(rows: int, columns: int) -> Tensor:
        return torch.arange(rows * columns, dtype=torch.float64).reshape(rows, columns) / 64

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.grid(x.shape[2], x.shape[3])


def test_what_a_decorator_remembers_for_sizes_is_worked_out() -> None:
    model = prepared(Positions(), X)
    result = fold(model, (X,))
    assert not result.report.kept
    assert error(model, result.model, X) < TOLERANCE
    assert error(model, result.model, X[..., :5]) < TOLERANCE


class Trained(ConvNorm):
    """Computes a loss when it is given labels, by code that reads data, and notes what sort they are."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.problem: str | None = None
        self.reads = reads

    def forward(self, x: Tensor | None = None, labels: Tensor | None = None) -> Any:
        if x is None:
            raise ValueError("give x")
        y = self.norm(self.conv(x))
        if y.shape[2] % 2 == 0:
            y = y.relu()
        if labels is None:
            return y
        if self.problem is None:
            self.problem = "classes" if labels.dtype in (torch.int64, torch.int32) else "values"
        if self.reads and int(labels.max()) > 3:
            raise ValueError("there are four classes")
        loss = F.cross_entropy(y, labels) if self.problem == "classes" else F.mse_loss(y, labels)
        return loss, y


def test_a_way_for_training_that_notes_its_arguments_is_followed() -> None:
    model = prepared(Trained(reads=False), X)
    result = fold(model, (X,))
    assert not result.report.kept
    assert not result.report.notes
    assert model.problem is None
    labels = torch.randint(4, (3, 8, 8))
    for one, other in zip(model(X, labels), result.model(X, labels), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-10)


def test_a_way_for_training_that_cannot_be_traced_is_said_to_be_left_out() -> None:
    model = prepared(Trained(reads=True), X)
    result = fold(model, (X,))
    assert not result.report.kept
    assert error(model, result.model, X) < TOLERANCE
    assert result.report.notes == [
        "for calls without labels: those with them cannot be traced",
    ]
    without = fold(prepared(Trained(reads=True), X))
    assert names(without.report.kept) == ["norm"]


class Catches(ConvNorm):
    """Code that catches errors is reached, and one way raises."""

    def forward(self, x: Tensor | None = None) -> Tensor:
        y = self.norm(self.conv(x))
        try:
            count = len(self.extra)
        except AttributeError:
            count = 1
        return y * count


def test_a_way_that_raises_is_none_where_errors_are_caught_elsewhere() -> None:
    _, report = folded(Catches(), X)
    assert not report.kept


class Masked(nn.Conv1d):
    """Takes lengths as well, and gives them on."""

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        places = torch.arange(x.shape[2], device=lengths.device).expand(len(lengths), x.shape[2])
        x = x.masked_fill((places >= lengths.unsqueeze(1)).unsqueeze(1), 0)
        return super().forward(x), lengths


class HalfDeaf(Masked):
    """Has a use for a bias only where the inputs are long."""

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        y = F.conv1d(x, self.weight, None if lengths.sum() > 7 else self.bias, padding=self.padding)
        return y, lengths


class Speech(nn.Module):
    def __init__(self, kind: type[Masked], calls: int) -> None:
        super().__init__()
        self.conv, self.norm, self.calls = kind(4, 4, 3, padding=1, bias=False), nn.BatchNorm1d(4), calls

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        for _ in range(self.calls):
            x, lengths = self.conv(x, lengths)
            x = self.norm(x).relu()
        return x


@pytest.mark.parametrize("calls", [1, 2])
def test_a_masked_convolution_is_given_a_bias(calls: int) -> None:
    x, lengths = torch.randn(2, 4, 9, dtype=torch.float64), torch.tensor([9, 5])
    model = prepared(Speech(Masked, calls), x, lengths)
    result = fold(model, (x, lengths))
    assert not result.report.kept
    assert torch.allclose(model(x, lengths), result.model(x, lengths), rtol=0, atol=1e-10)


def test_a_convolution_that_would_not_always_use_a_bias_is_given_none() -> None:
    x, lengths = torch.randn(2, 4, 9, dtype=torch.float64), torch.tensor([9, 5])
    model = prepared(Speech(HalfDeaf, 1), x, lengths)
    assert names(fold(model, (x, lengths)).report.kept) == ["norm"]


def several() -> dict[str, nn.Module]:
    return {
        "convs": nn.ModuleList(nn.Conv2d(4, 5, 1) for _ in range(3)),
        "norm": nn.BatchNorm2d(5),
    }


@pytest.mark.parametrize("how", ["sum", "mean"])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_a_sum_over_what_was_stacked_is_a_sum(how: str, dim: int) -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        stacked = torch.stack([conv(x) for conv in self.convs], dim=dim)
        return self.norm(getattr(stacked, how)(dim=dim)).relu()

    _, report = folded(Block(run, **several()), X)
    assert not report.kept
    program = torch.export.export(prepared(Block(run, **several()), X), (X,))
    exported = bntool.fold(program)
    assert not exported.report.kept
    assert torch.allclose(program.module()(X), exported.model.module()(X), rtol=0, atol=1e-10)


OTHER_SUMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "another dimension": lambda self, x: torch.stack([c(x) for c in self.convs], 0).sum(1),
    "of squares": lambda self, x: (torch.stack([c(x) for c in self.convs], 0) ** 2).sum(0),
    "of one part twice": lambda self, x: torch.stack([(y := self.convs[0](x)), y.relu()], 0).sum(0),
    "read elsewhere": lambda self, x: (y := torch.stack([c(x) for c in self.convs], 0)).sum(0) + y[0],
}


@pytest.mark.parametrize("name", OTHER_SUMS)
def test_other_sums_of_a_stack_are_what_they_are(name: str) -> None:
    model = prepared(Block(lambda self, x: self.norm(OTHER_SUMS[name](self, x)), **several()), X)
    result = fold(model, (X,))
    assert names(result.report.kept) == ["norm"]
    assert error(model, result.model, X) < TOLERANCE


def changed_before(self: Any, x: Tensor) -> Tensor:
    parts = [conv(x) for conv in self.convs]
    stacked = torch.stack(parts, 0)
    for part in parts:
        part.add_(5.0)
    return stacked.sum(0)


def written_to(self: Any, x: Tensor) -> Tensor:
    stacked = torch.stack([conv(x) for conv in self.convs], 0)
    stacked[0] = 5.0
    return stacked.sum(0)


@pytest.mark.parametrize("run", [changed_before, written_to])
def test_a_stack_is_what_was_put_in_it_and_is_written_to(run: Callable[[Any, Tensor], Tensor]) -> None:
    model = prepared(Block(lambda self, x: self.norm(run(self, x)), **several()), X)
    assert error(model, fold(model, (X,)).model, X) < TOLERANCE


def test_old_code_wraps_tensors_in_variables() -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        zeros = torch.autograd.Variable(torch.zeros(1, dtype=x.dtype))
        return self.norm(self.conv(torch.autograd.Variable(x))) + zeros

    _, report = folded(Block(run, conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)), X)
    assert not report.kept
    assert type(torch.autograd.Variable(X)) is Tensor


def test_sizes_are_known_of_what_another_machine_would_make() -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        device = torch.device("cuda") if x.is_cuda else torch.device("cpu")
        rows = torch.arange(0, x.shape[1], device=device).view(-1, 1, 1) * 0
        return self.norm(self.conv(x[:, rows.flatten()] + rows))

    model = prepared(Block(run, conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)), X)
    result = fold(model, (X,))
    assert not result.report.kept
    assert len(outputs(result.model, X)) == 1


CACHE: dict[int, Tensor] = {}


def test_traced_values_do_not_stay_in_the_users_caches() -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        size = int(x.shape[-1])
        if size not in CACHE:
            CACHE[size] = torch.arange(size, dtype=x.dtype, device=x.device)
        return self.norm(self.conv(x)) + CACHE[size]

    model = prepared(Block(run, conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)), X)
    CACHE.clear()
    result = fold(model, (X,), verify=False)
    assert {type(kept) for kept in CACHE.values()} <= {Tensor}
    assert type(model(X)) is Tensor
    assert error(model, result.model, X) < TOLERANCE


class Caught(ConvNorm):
    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.conv(x)
        try:
            h = h + y
        except TypeError:
            h = h.sigmoid()
        return self.norm(h)


class Refused(ConvNorm):
    def forward(self, x: Tensor, flag: bool = False) -> Tensor:
        h = self.conv(x)
        if flag:
            return self.norm(h)
        try:
            x = F.interpolate(x, size=(1, 2, 3))
        except ValueError:
            h = h.sigmoid()
        return self.norm(h)


class Seen(ConvNorm):
    """From its second call on another question decides."""

    seen = False

    def ask(self, x: Tensor) -> bool:
        return bool(x.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        if self.seen and self.ask(x):
            pass
        elif self.seen:
            h = h.sigmoid()
        self.seen = True
        return self.norm(h)


class SeenBatch(Seen):
    def ask(self, x: Tensor) -> bool:
        return x.shape[0] > 2


class Counted(ConvNorm):
    @torch.no_grad()
    def forward(self, x: Tensor, *, count: int = 0) -> Tensor:
        h = self.conv(x)
        for _ in range(count):
            h = h.sigmoid()
        return self.norm(h)


class OldClass(ConvNorm):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.norm(h.sigmoid() if isinstance(x, torch.autograd.Variable) else h)


STAYING: dict[type[ConvNorm], list[dict[str, Any]]] = {
    Caught: [{}, {"y": X}],
    Refused: [{}, {"flag": True}],
    Seen: [{}, {}],
    SeenBatch: [{}, {}],
    Counted: [{}, {"count": 1}],
    OldClass: [{}],
}


@pytest.mark.parametrize("kind", STAYING)
def test_what_a_forward_really_does_next_decides(kind: type[ConvNorm]) -> None:
    model = prepared(kind(), X)
    if isinstance(model, Seen):
        model.seen = False
    result = fold(model, (X,), verify=False)
    assert names(result.report.kept) == ["norm"]
    for named in STAYING[kind]:
        assert torch.allclose(model(X, **named), result.model(X, **named), rtol=0, atol=1e-10)


class Relu(nn.Linear):
    """What it does with a bias is not all that a bias changes."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y if self.bias is None else y.relu()


def test_a_layer_that_does_something_else_with_a_bias_is_given_none() -> None:
    model = nn.Sequential(Relu(4, 4, bias=False), nn.BatchNorm1d(4))
    x = torch.randn(5, 4, dtype=torch.float64)
    result = fold(prepared(model, x), (x,), verify=False)
    assert names(result.report.kept) == ["1"]


def moded(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def call(self: Any, *args: Any, mode: str = "n", **kwargs: Any) -> Any:
        self.mode = mode
        return forward(self, *args, **kwargs)

    return call


class Moded(ConvNorm):
    mode = "n"

    @moded
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if self.mode == "raw" else self.norm(self.conv(x))


def test_arguments_that_only_a_decorator_names_are_noted() -> None:
    result = fold(prepared(Moded(), X), (X,))
    assert result.report.notes == ["for calls without mode: those with them are not followed"]


def test_a_stack_of_pieces_is_no_stack_of_parts() -> None:
    run: Callable[[Any, Tensor], Tensor] = lambda self, x: self.norm(  # noqa: E731
        torch.stack(self.conv(x).chunk(2, 1)).sum(0)
    )
    model = prepared(Block(run, conv=nn.Conv2d(4, 8, 1), norm=nn.BatchNorm2d(4)), X)
    assert error(model, fold(model, (X,), verify=False).model, X) < TOLERANCE
