"""Shared layers, tied weights, second readers, hooks, in-place ops: where other tools are silently wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bntool.fold import fold, fold_
from tests.folding import Block, ConvNorm, error, folded, names, prepared, reason

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Twice(nn.Module):
    """One conv, called twice; `first` and `second` follow the calls."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), first, second

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(self.conv(x)), self.second(self.conv(x * 2))


def test_one_conv_twice_and_a_norm_on_one_call_stays() -> None:
    _, report = folded(Twice(nn.BatchNorm2d(4), nn.ReLU()), X)
    assert "conv is called 2 times, not every time with the same map" in reason(report)


def test_siamese_folds_once_and_again_changes_nothing() -> None:
    norm = nn.BatchNorm2d(4)
    model = prepared(Twice(norm, norm), X)
    result, report = folded(model, X, prepare=False)
    assert names(report.folded) == ["first"]
    assert isinstance(result.first, nn.Identity)
    again = fold(result, X, verify=False)
    assert again.report.found == 0
    assert error(result, again.model, X) == 0


def test_one_conv_and_a_norm_per_call_stays() -> None:
    _, report = folded(Twice(nn.BatchNorm2d(4), nn.BatchNorm2d(4)), X)
    assert names(report.kept) == ["first", "second"]


#: an op that reads one value twice, the norm's scale and whether it has a shift -> why the norm stays, if so
TWICE = {
    "square": (lambda y: y * y, 1.0, False, ""),
    "square, negative": (lambda y: y * y, -1.0, False, "a negative scale cannot pass a square"),
    "square, shifted": (lambda y: y * y, 1.0, True, "a shift cannot pass a product"),
    "matrix product": (lambda y: y @ y, 1.0, False, "read more than once by matmul"),
    "double": (lambda y: y + y, -1.0, True, ""),
    "difference": (lambda y: y - 3 * y, -1.0, False, ""),
    "difference, shifted": (lambda y: y - 3 * y, -1.0, True, ""),
}


@pytest.mark.parametrize("how", TWICE)
def test_an_op_that_reads_one_value_twice_reads_its_map_twice(how: str) -> None:
    """A scale that went up through one of the two operands alone, `s * y * y`, would reach both."""
    op, sign, shifts, why = TWICE[how]

    class Itself(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.next = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(op(self.conv(x)))
            return self.next(F.pad(y, (1, 1), value=1.0)).relu()  # lets no map of the norm go on

    model = prepared(Itself(), X)
    model.norm.weight.data.abs_().mul_(sign)
    if not shifts:
        model.norm.running_mean.zero_()
        model.norm.bias.data.zero_()
    for form in ("module", "graph"):
        _, report = folded(model, X, prepare=False, form=form)
        assert (why in reason(report)) if why else names(report.folded) == ["norm"]


def test_a_norm_goes_down_through_a_value_that_is_doubled() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x.tanh())
            return self.conv(y + y)

    assert names(folded(Doubled(), X)[1].folded) == ["norm"]


def test_a_second_call_whose_result_nobody_reads_folds_the_norm_once() -> None:
    class Idle(ConvNorm):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            result, _ = self.norm(y), self.norm(y)
            return result

    _, report = folded(Idle(), X)
    assert names(report.folded) == ["norm"]


@pytest.mark.parametrize("again", [False, True])
def test_a_norm_applied_twice_and_once_behind_one_layer(again: bool) -> None:
    """Two paths through it want the map squared of the layer; with a path of one call they disagree."""

    class Chain(ConvNorm):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            short = self.norm(y)
            return self.norm(self.norm(y)), self.norm(short) if again else short

    _, report = folded(Chain(), X)
    assert names(report.folded) == (["norm"] if again else [])


@pytest.mark.parametrize("down", [False, True])
def test_a_norm_applied_twice_with_a_gain_between(down: bool) -> None:
    """The two maps differ by then, and in one order alone they make up the whole."""

    class Chain(ConvNorm):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.randn(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = x.tanh() if down else self.conv(x)
            z = self.norm(self.norm(y) * self.gain)
            return self.conv(z) if down else z.tanh()

    assert names(folded(Chain(), X)[1].folded) == ["norm"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.b.weight = self.a.weight
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.norm(self.a(x))))


def test_tied_weights_are_never_written() -> None:
    result, report = folded(Tied(), X)
    assert "a.weight is also used by b" in reason(report)
    assert result.a.weight is result.b.weight


class ReadsItsWeight(ConvNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv.weight.sum()


def test_a_weight_read_elsewhere_stays() -> None:
    _, report = folded(ReadsItsWeight(), X)
    assert "conv.weight is also used by sum" in reason(report)


class Decays(nn.Module):
    """Reads its parameters where no attribute of a module is looked up."""

    def __init__(self, read: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.conv, self.norm, self.read = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), read

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.read(self)


@pytest.mark.parametrize(
    "read",
    [
        lambda m: sum(p.square().sum() for p in m.parameters()),
        lambda m: torch.stack([p.mean() for p in m.conv.parameters()]).sum(),
        lambda m: torch.cat([p.flatten() for p in m.norm.buffers()]).sum(),
        lambda m: m.state_dict()["norm.weight"].sum(),
        lambda m: float(next(iter(m.parameters())).detach().numpy().sum()),
    ],
)
def test_parameters_read_past_the_tracer_stay(read: Callable[[nn.Module], Any]) -> None:
    model = prepared(Decays(read), X)
    result, report = folded(model, X, prepare=False)
    assert reason(report)
    assert error(model, result, X) == 0.0


def test_a_forward_that_asks_for_a_type_reads_no_parameter() -> None:
    model = Decays(
        lambda m: torch.zeros((), dtype=next(m.parameters()).dtype, device=next(m.parameters()).device)
    )
    assert names(folded(model, X)[1].folded) == ["norm"]


class TiedDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.norm(self.encoder(x))), self.encoder.weight.t())


def test_a_tied_decoder_keeps_the_norm() -> None:
    _, report = folded(TiedDecoder(), X[:, :, 0, 0].contiguous())
    assert "encoder.weight is also used by" in reason(report)


class InPlace(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm, self.how = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), how

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        if self.how == "own":
            y += 1
            return self.norm(y)
        view = y.flatten(2)
        if self.how == "view":
            view.relu_()
            return self.norm(y)
        if self.how == "assignment":
            y[:, 0] = 0
            return self.norm(y)
        z = self.norm(y)
        z.mul_(2)
        return z, y.relu_()


@pytest.mark.parametrize(("how", "left"), [("own", 0), ("view", 1), ("assignment", 1), ("output", 1)])
def test_in_place_ops_between(how: str, left: int) -> None:
    _, report = folded(InPlace(how), X)
    assert len(report.kept) == left


class Hooked(nn.Sequential):
    pass


@pytest.mark.parametrize(("where", "left"), [("0", 1), ("1", 1), ("2", 0), ("", 0)])
def test_a_hook_sees_what_it_saw(where: str, left: int) -> None:
    model = prepared(Hooked(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), X)
    seen: list[Tensor] = []
    model.get_submodule(where).register_forward_hook(lambda m, args, out: seen.append(out))
    result, report = folded(model, X, prepare=False)
    assert len(report.kept) == left
    if left:
        assert "hook" in reason(report)
    seen.clear()
    with torch.no_grad():
        model(X)
        result(X)
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], seen[1])


def test_a_hook_is_not_called_by_the_analysis() -> None:
    model = prepared(Hooked(nn.Sequential(nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4)), X)
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda m, args, out: seen.append(out))
    fold(model, X, verify=False)
    assert seen == []


def test_the_model_passed_in_is_left_alone() -> None:
    model = prepared(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), X)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fold(model, X)
    assert isinstance(model[1], nn.BatchNorm2d)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_what_need_not_change_survives() -> None:
    model = prepared(Twice(nn.BatchNorm2d(4), nn.ReLU()), X).to(memory_format=torch.channels_last)
    plain = prepared(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)), X)
    plain.to(memory_format=torch.channels_last).note = "mine"
    plain[0].weight.requires_grad_(False)
    result = fold(plain, X).model
    assert type(result) is type(plain)
    assert result.note == "mine"
    assert not result[0].weight.requires_grad
    assert result[2].weight.requires_grad
    assert result[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert result[0].weight.dtype == torch.float64
    assert not result.training
    assert type(fold(model, X).model) is Twice


def test_in_place_keeps_the_module_and_its_parameters() -> None:
    model = prepared(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), X)
    want, weight = model(X), model[0].weight
    result = fold_(model, X)
    assert result.model is model
    assert model[0].weight is weight
    assert isinstance(model[1], nn.Identity)
    torch.testing.assert_close(model(X), want)


def test_keep_leaves_norms_alone() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    _, report = folded(model, X, keep=["3"])
    assert names(report.folded) == ["1"]
    assert reason(report, "3") == "kept as asked"


def test_a_norm_that_is_kept_takes_no_other_norms_map() -> None:
    model = prepared(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.BatchNorm2d(4)), X)
    result, _ = folded(model, X, prepare=False, keep=["2"])
    assert torch.equal(result[2].weight, model[2].weight)


@pytest.mark.parametrize("where", ["ahead", "behind"])
@pytest.mark.parametrize("zero", [False, True])
def test_a_map_passes_a_norm_that_stays(where: str, zero: bool) -> None:
    """`f(m(x)) = g(f(x))`, unless it would have to be undone where f multiplies with zero."""
    if where == "ahead":
        layers = [nn.Tanh(), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)]
    else:
        layers = [nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Tanh()]
    model = prepared(nn.Sequential(*layers), X)
    stays, goes = ("2", "1") if where == "ahead" else ("1", "2")
    if zero:
        model.get_submodule(stays).weight.data[0] = 0
    result, report = folded(model, X, prepare=False, keep=[stays])
    assert names(report.folded) == ([goes] if where == "ahead" or not zero else [])
    kept = result.get_submodule(stays).state_dict()
    assert all(
        torch.equal(kept[name], value) for name, value in model.get_submodule(stays).state_dict().items()
    )


class OtherOrder(nn.Module):
    """Declared in another order than called."""

    def __init__(self) -> None:
        super().__init__()
        self.norm2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.norm1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm2(self.conv1(torch.relu(self.norm1(self.conv2(x))))))


def test_data_flow_decides_not_the_order_of_declaration() -> None:
    _, report = folded(OtherOrder(), X)
    assert {(e.name, e.into) for e in report.folded} == {("norm1", "conv2"), ("norm2", "conv1")}


class Aliases(nn.Module):
    """Without its norm, the value in front of it and the one behind it are one piece of memory."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.norm, self.conv, self.how = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), how

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        z = self.norm(y)
        if self.how == "behind":
            return self.conv(torch.relu_(z)) + y
        late = self.conv(z) if self.how == "in front, but later" else z
        y.mul_(3)
        return (late if late is not z else self.conv(z)) + y


@pytest.mark.parametrize("how", ["behind", "in front"])
def test_in_place_ops_on_what_a_norm_separated(how: str) -> None:
    model = prepared(Aliases(how), X)
    model.norm.running_mean.zero_()  # a positive scale alone, which passes the activation
    model.norm.bias.data.zero_()
    model.norm.weight.data.abs_()
    _, report = folded(model, X, prepare=False)
    assert "changed in place" in reason(report)


def test_an_in_place_op_after_the_last_read_is_in_nobodys_way() -> None:
    _, report = folded(Aliases("in front, but later"), X)
    assert names(report.folded) == ["norm"]


def test_an_in_place_op_behind_a_norm_must_not_reach_the_models_input() -> None:
    class First(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](F.relu(self[0](x), inplace=True))

    model = prepared(First(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)), X)
    model[0].running_mean.zero_()
    model[0].bias.data.zero_()
    model[0].weight.data.abs_()
    result, _ = folded(model, X, prepare=False)
    x = X.clone()
    with torch.no_grad():
        result(x)
    assert torch.equal(x, X)


class Twins(nn.Module):
    """Two layers, each with a parameter of its own in one memory, and one norm behind both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(4, 4, 1, bias=False) for _ in range(2))
        self.norm = nn.BatchNorm2d(4)
        self.b.weight = nn.Parameter(self.a.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.norm(self.a(x)) * self.norm(self.b(x))
        return product


def test_layers_that_share_memory_all_get_the_new_bias() -> None:
    model = prepared(Twins(), X)
    model.b.weight = nn.Parameter(model.a.weight.data)
    result = fold(model, X)
    assert len(result.report.folded) == 1
    assert result.model.a.bias is result.model.b.bias is not None
    assert error(model, result.model, X) < 1e-12


class Listed(nn.Module):
    """Calls its layers by way of a plain list, a tuple or a table of them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.layers = {
            "list": [self.conv, self.norm],
            "tuple": (self.conv, self.norm),
            "nested": [[self.conv], {"norm": self.norm}],
        }[how]

    def forward(self, x: Tensor) -> Tensor:
        first, last = self.layers
        conv, norm = (first[0], last["norm"]) if isinstance(first, list) else (first, last)
        return norm(conv(x))


@pytest.mark.parametrize("how", ["list", "tuple", "nested"])
def test_a_norm_that_a_plain_list_holds_goes_in_place(how: str) -> None:
    model = prepared(Listed(how), X)
    original = copy.deepcopy(model)
    assert names(fold_(model, X).report.folded) == ["norm"]
    assert error(original, model, X) < 1e-12


class CalledAgain(nn.Module):
    """A norm whose own output is among what it is given next: its scale is in the way of its own shift."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.gain = nn.Linear(4, 6), nn.Parameter(torch.rand(6) + 0.5)
        self.norm, self.other = nn.BatchNorm1d(6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return self.other(self.norm(y - self.norm(y * self.gain)))


def test_scale_and_shift_apart_do_not_pass_another_call_of_the_norm() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    model = prepared(CalledAgain(), x)
    result = fold(model, (x,), verify=False)
    assert error(model, result.model, x) < 1e-11


def test_a_share_of_a_batch_that_is_cut_again_is_other_things_for_other_batches() -> None:
    class Cut(ConvNorm):
        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return self.conv(torch.cat([y, x, y]).chunk(2)[1].narrow(0, 2, 1))

    model = prepared(Cut(), torch.cat([X, X[:1]]))
    result = fold(model, (torch.cat([X, X[:1]]),), verify=False)
    for batch in (3, 4, 6, 9):
        assert error(model, result.model, torch.randn(batch, 4, 6, 6, dtype=torch.float64)) < 1e-11


def test_the_mean_of_a_weight_is_a_number_as_long_as_that_stays() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv, self.after = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.read = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x) + self.read.weight.mean() + self.read.weight.mean(dim=(1, 2, 3))[:, None, None]
            return self.read(self.conv(y).relu()) + self.after(self.read(x))

    _, report = folded(Mean(), X)
    assert names(report.kept) == ["after"]


#: what is put together of one norm's calls
PARTS: dict[str, Callable[[Any, Tensor], list[Tensor]]] = {
    "one part is no norm's": lambda b, x: [b.norm(x.tanh()), x],
    "one part is scaled": lambda b, x: [b.norm(x.tanh()), b.norm(x.relu()) * 2],
    "one part is normalised twice": lambda b, x: [b.norm(x.tanh()), b.norm(b.norm(x.relu()))],
}


@pytest.mark.parametrize("how", PARTS)
def test_parts_that_have_not_lost_the_same_map_keep_it(how: str) -> None:
    """A layer behind them that took the map all the same would be wrong."""
    model: Any = prepared(
        Block(
            lambda b, x: b.conv(torch.cat(PARTS[how](b, x))), norm=nn.BatchNorm2d(4), conv=nn.Conv2d(4, 3, 1)
        ),
        X,
    )
    assert "the map differs along more than its channels" in reason(fold(model, X).report)
    alone = fold(Block(lambda b, x: b.conv(b.norm(x.tanh())), norm=model.norm, conv=model.conv).eval())
    assert names(alone.report.folded) == ["norm"]
    wrong = copy.deepcopy(model)
    wrong.norm, wrong.conv = nn.Identity(), alone.model.conv
    assert error(model, wrong, X) > 1e-3


def test_what_is_added_in_place_is_not_what_is_changed() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.norm(y)
        return self.norm(y).tanh().add_(z)

    model = Block(forward, conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4))
    assert names(folded(model, X)[1].folded) == ["norm"]
