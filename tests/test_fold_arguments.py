"""Other arguments than the example's: flags, numbers, lists, None; and forwards that catch what is raised."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bntool.fold import fold
from tests.folding import names, prepared

X = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


class Net(nn.Module):
    """A convolution with two norms, one of which is called, or both, or none."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run = run
        self.conv, self.norms = nn.Conv2d(4, 4, 1), nn.ModuleList([nn.BatchNorm2d(4) for _ in range(2)])

    def forward(self, *arguments: Any) -> Any:
        return self.run(self, *arguments)


def looped(self: Any, x: Tensor, count: int) -> Any:
    y = self.conv(x)
    for _ in range(count):
        y = self.norms[0](y)
    return y


def further(self: Any, xs: list[Tensor]) -> Any:
    y = self.conv(xs[0])
    for _ in xs[1:]:
        y = self.norms[0](y)
    return y


def unpacked(self: Any, pair: Any) -> Any:
    x, mask = pair
    return self.norms[0](self.conv(x)) if mask is not None else self.conv(x)


def either(self: Any, x: Tensor, given: bool) -> Any:
    return self.norms[0](self.conv(x)) if given else self.norms[1](self.conv(x))


def emptied(self: Any, xs: list[Tensor]) -> Any:
    y = self.conv(xs.pop())
    while xs:
        y = self.norms[0](y) + xs.pop()
    return y


class Mode(Enum):
    ONE, NONE = 1, 0


def matched(self: Any, x: Tensor, flag: bool) -> Any:
    match flag:
        case True:
            return self.norms[0](self.conv(x))
    return self.conv(x)


def deep_inside(self: Any, x: Tensor, flag: bool) -> Any:
    def normed(y: Tensor, wanted: bool) -> Any:
        return self.norms[0](y) if wanted is not False else y

    return normed(self.conv(x), flag)


P = (1, 1, 1, 1)
#: what runs, the example, other arguments
OTHERS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], tuple[Any, ...]]] = {
    "a loop as long as a number": (looped, (X, 1), ((X, 2), (X, 0))),
    "a number as index": (lambda s, x, n: s.norms[n](s.conv(x)), (X, 0), ((X, 1),)),
    "a number that is rounded": (lambda s, x, n: s.norms[int(n)](s.conv(x)), (X, 0.5), ((X, 1.5),)),
    "a number in a tuple": (lambda s, x, t: s.norms[t[0]](s.conv(x)), (X, (0, 1)), ((X, (1, 0)),)),
    "a comparison": (lambda s, x, n: s.norms[0](s.conv(x)) if n == 0 else s.conv(x), (X, 0), ((X, 1),)),
    "a flag": (either, (X, True), ((X, False),)),
    "a flag that has to be True itself": (
        lambda s, x, f: s.norms[0](s.conv(x)) if f is True else s.conv(x),
        (X, True),
        ((X, False),),
    ),
    "a flag that has not to be True itself": (
        lambda s, x, f: s.conv(x) if f is True else s.norms[0](s.conv(x)),
        (X, False),
        ((X, True),),
    ),
    "a flag that is matched": (matched, (X, True), ((X, False),)),
    "a flag that is handed on": (deep_inside, (X, True), ((X, False),)),
    "how is padded": (
        lambda s, x, m: s.conv(F.pad(s.norms[0](x), P, mode=m)),
        (X, "reflect"),
        ((X, "constant"),),
    ),
    "how much is padded": (
        lambda s, x, n: s.conv(F.pad(s.norms[0](x), (n, n, n, n))),
        (X, -1),
        ((X, 1),),
    ),
    "what is padded with": (lambda s, x, v: s.conv(F.pad(s.norms[0](x), P, value=v)), (X, 0.0), ((X, 1.0),)),
    "to what is cast": (
        lambda s, x, t: s.conv(s.norms[0](x).to(t).double()),
        (X, torch.float64),
        ((X, torch.int32),),
    ),
    "whether a pool counts padding": (
        lambda s, x, c: s.conv(F.avg_pool2d(s.norms[0](x), 3, 1, 1, count_include_pad=c)),
        (X, False),
        ((X, True),),
    ),
    "a member of an enumeration": (
        lambda s, x, m: s.norms[0](s.conv(x)) if m is Mode.ONE else s.conv(x),
        (X, Mode.ONE),
        ((X, Mode.NONE),),
    ),
    "a member that is equal to another": (
        lambda s, x, m: s.conv(x) if m == Mode.ONE else s.norms[0](s.conv(x)),
        (X, Mode.NONE),
        ((X, Mode.ONE),),
    ),
    "the length of a list": (lambda s, x, v: s.norms[len(v)](s.conv(x)), (X, [X]), ((X, []),)),
    "a loop over a list": (further, ([X, X],), (([X],), ([X, X, X],))),
    "a list that is emptied": (emptied, ([X, X],), (([X],), ([X, X, X],))),
    "a mask that is not given": (
        lambda s, x, m: s.norms[0](s.conv(x)) if m is not None else s.conv(x),
        (X, None),
        ((X, X),),
    ),
    "a key that is not there": (
        lambda s, d: s.norms[0](s.conv(d["x"])) if d.get("y") is None else s.conv(d["x"]),
        ({"x": X},),
        (({"x": X, "y": X},),),
    ),
    "a value that is None": (unpacked, ((X, None),), (((X, X),),)),
}


def values(model: nn.Module, arguments: Any) -> Any:
    with torch.no_grad():
        return model(*copy.deepcopy(arguments))


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("name", OTHERS)
def test_it_computes_the_same_with_other_arguments(name: str, form: str) -> None:
    run, example, others = OTHERS[name]
    torch.manual_seed(2)
    model: Any = prepared(Net(lambda s, x: s.norms[1](s.norms[0](s.conv(x)))), X)
    model.run = run
    folded = fold(model, example, verify=False, form=form).model
    for arguments in (example, *others):
        assert torch.allclose(values(folded, arguments), values(model, arguments), rtol=0, atol=1e-11)


class FlagByDefault(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, deep: bool = True, mode: Mode = Mode.ONE) -> Tensor:
        y = self.norm(self.conv(x)) if deep is True else self.conv(x).relu()
        return self.head(y) if mode is Mode.ONE else y


@pytest.mark.parametrize("form", ["module", "graph"])
def test_what_a_default_is_itself_is_followed(form: str) -> None:
    model = prepared(FlagByDefault(), X)
    folded = fold(model, (X,), form=form)
    assert names(folded.report.folded) == (["norm"] if form == "graph" else [])
    for more in ((), (True,), (False,)) if form == "module" else ((),):
        assert torch.allclose(folded.model(X, *more), model(X, *more), rtol=0, atol=1e-11)


def test_a_number_that_is_only_computed_with_keeps_no_norm() -> None:
    model: Any = prepared(Net(lambda s, x: s.norms[0](s.conv(x))), X)
    model.run = lambda s, x, n: s.norms[0](s.conv(x)) * n + n
    report = fold(model, (X, 3)).report
    assert names(report.folded) == ["norms.0"]


def shape_caught(self: Any, x: Tensor) -> Any:
    try:
        return self.norms[0](self.conv(x)).view(-1, 7)
    except RuntimeError:
        return self.conv(x)


def sum_caught(self: Any, x: Tensor) -> Any:
    y = self.conv(x)
    with contextlib.suppress(RuntimeError):
        return self.norms[0](y) + x[:, :3]
    return y


def channels_caught(self: Any, x: Tensor) -> Any:
    try:
        return self.norms[0](self.conv(x)[:, :3])
    except RuntimeError:
        return self.conv(x)


def refusal_caught(self: Any, x: Tensor) -> Any:
    try:
        large = float(x.sum()) > 1e9
    except Exception:
        large = True
    return self.norms[0](self.conv(x)) if large else self.conv(x)


def raised_itself(self: Any, x: Tensor) -> Any:
    try:
        return self.missing(x)
    except AttributeError:
        return self.norms[0](self.conv(x))


def caught(run: Callable[[Any, Tensor], Any]) -> Any:
    """A module of a class whose own forward this is."""
    own = type("Own", (Net,), {"forward": run})
    torch.manual_seed(2)
    made = prepared(Net(lambda s, x: s.norms[0](s.conv(x))), X)
    made.__class__ = own
    return made


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("run", [shape_caught, sum_caught, channels_caught, refusal_caught, raised_itself])
def test_a_forward_that_catches_what_is_raised_does_what_it_did(
    run: Callable[[Any, Tensor], Any], form: str
) -> None:
    model = caught(run)
    result = fold(model, X, verify=False, form=form)
    assert torch.allclose(values(result.model, (X,)), values(model, (X,)), rtol=0, atol=1e-11)
    assert names(result.report.folded) == (["norms.0"] if run is raised_itself else [])


@pytest.mark.parametrize("channels", [(8, 4), (4, 8)])
def test_norms_that_do_not_fit_what_they_are_given_are_no_crash(channels: tuple[int, int]) -> None:
    broken = nn.Sequential(nn.Conv2d(4, 8, 1), *[nn.BatchNorm2d(size) for size in channels]).eval()
    assert fold(broken, X.float(), verify=False).report.found == 2
    part = Net(lambda s, x: s.norms[1](s.norms[0](s.conv(x))) + s.norms[0](x[:, :3])).eval()
    assert fold(part, X.float(), verify=False).report.found == 2
