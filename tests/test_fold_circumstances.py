"""Where tensors are, whether they need gradients, what a forward refuses: no call has to be as another is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bntool.fold import fold
from tests.folding import TOLERANCE, Block, ConvNorm, error, names, prepared

X = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(11), dtype=torch.float64)

QUESTIONS: dict[str, Callable[[Tensor], Any]] = {
    "kind of device": lambda x: x.device.type == "cpu",
    "one of several kinds": lambda x: x.device.type in ("cpu", "mps"),
    "device": lambda x: x.device == torch.device("cpu"),
    "device as a word": lambda x: str(x.device) == "cpu",
    "device in words": lambda x: f"on {x.device}" == "on cpu",
    "words of a device": lambda x: str(x.device).startswith("cpu"),
    "in the word for a device": lambda x: "cpu" in str(x.device),
    "another word": lambda x: str(x.device) != "cuda",
    "on the processor": lambda x: x.is_cpu,
    "not on a graphics card": lambda x: not x.is_cuda,
    "with data": lambda x: not x.is_meta,
    "number of the device": lambda x: x.get_device() < 0,
    "number read": lambda x: int(x.get_device()) < 0,
    "wants a gradient": lambda x: (x * torch.ones(4, 5, 5, dtype=x.dtype, requires_grad=True)).requires_grad,
}


def kept_apart(question: Callable[[Tensor], Any]) -> Any:
    layers = ConvNorm()

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y if question(x) else self.norm(y)

    return prepared(Block(forward, conv=layers.conv, norm=layers.norm), X)


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("inputs", [X, None], ids=["inputs", "none"])
@pytest.mark.parametrize("name", QUESTIONS)
def test_both_ways_are_looked_at(name: str, inputs: Tensor | None, form: str) -> None:
    model = kept_apart(QUESTIONS[name])
    result = fold(model, inputs, verify=False, form=form)  # type: ignore[call-overload]
    assert names(result.report.kept) == ["norm"]
    assert error(model, result.model, X) <= TOLERANCE


def test_the_same_question_has_one_answer() -> None:
    """Fifty layers that each ask it would else be as many forks as there are ways for."""
    layers = ConvNorm()

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        for _ in range(50):
            y = y * 2 if y.device.type == "mps" else y + 1
        return y

    model = prepared(Block(forward, conv=layers.conv, norm=layers.norm), X)
    result = fold(model, X)
    assert names(result.report.folded) == ["norm"]
    assert error(model, result.model, X) <= TOLERANCE


def under_autocast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast(device_type=x.device.type, enabled=False):
        return self.norm(self.conv(x))  # type: ignore[no-any-return]


def under_autocast_there(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cuda", enabled=x.is_cuda):
        return self.norm(self.conv(x))  # type: ignore[no-any-return]


def refuses(self: Any, x: Tensor) -> Tensor:
    y: Tensor = self.norm(self.conv(x))
    if not torch.isfinite(y).all():
        raise FloatingPointError(f"{y.shape} on {y.device} is not finite")
    return y


def checks(self: Any, x: Tensor) -> Tensor:
    torch._check(x.shape[0] > 0)
    return self.norm(self.conv(x))  # type: ignore[no-any-return]


def insists(self: Any, x: Tensor) -> Tensor:
    y = self.norm(self.conv(x))
    if y.dim() != 4:
        raise ValueError("expected images, got " + str(y.dim()) + f" dimensions, {y.shape!r} on {y.device}")
    if y.shape[1] != 4:
        warnings.warn(f"{y.shape[1]} channels", stacklevel=2)
    if y.dtype == torch.int32:  # an assert would be rewritten by pytest
        raise AssertionError(f"no numbers of {y.dtype}")
    return y  # type: ignore[no-any-return]


def moves(self: Any, x: Tensor) -> Tensor:
    ones = torch.ones(4).repeat(x.size(0), 1)
    if x.is_cuda:
        ones = ones.cuda()
    y = (
        self.norm(self.conv(x))
        + ones.to(x.device, x.dtype).cpu().to("cpu", non_blocking=True)[:, :, None, None]
    )
    return F.avg_pool2d(y, y.size()[2:]).view(-1, int(y.size(1)))


CASES = [(f, X) for f in (under_autocast, under_autocast_there, refuses, checks, insists, moves)] + [
    (f, None) for f in (under_autocast_there, refuses, insists)
]


@pytest.mark.parametrize(("forward", "inputs"), CASES)
def test_the_norm_folds(forward: Callable[[Any, Tensor], Tensor], inputs: Tensor | None) -> None:
    layers = ConvNorm()
    model = prepared(Block(forward, conv=layers.conv, norm=layers.norm), X)
    result = fold(model, inputs)
    assert names(result.report.folded) == ["norm"]
    assert error(model, result.model, X) <= TOLERANCE


class Counter:
    """Takes no tensors: `count(1.0)` is a number more."""

    def __call__(self, x: Any) -> int:
        if type(x) not in (float, Tensor):
            raise TypeError("a number or a tensor")
        return 1


def artefact_of_tracing(self: Any, x: Tensor) -> Tensor:
    y: Tensor = self.conv(x)
    return self.norm(y) + y * len(y.nonzero()) if x.sum() > -1e9 else self.norm(y)


def artefact_of_words(self: Any, x: Tensor) -> Tensor:
    y: Tensor = self.conv(x)
    if x.sum() > -1e9:
        words = f"on {x.device}"
        return self.norm(y) + y * len(words)
    return self.norm(y)  # type: ignore[no-any-return]


def artefact_of_a_type(self: Any, x: Tensor) -> Tensor:
    """The way on which the input of the norm has another reader raises when it is traced, and only then."""
    y: Tensor = self.conv(x)
    return self.norm(y) + y * Counter()(y) if x.sum() > -1e9 else self.norm(y)


#: stands for a check somewhere in torch that a traced value does not pass
TORCHS: dict[str, Any] = {"__name__": "torch.checks"}
exec("def insist(flag):\n    assert flag is True", TORCHS)


def artefact_in_torch(self: Any, x: Tensor) -> Tensor:
    y: Tensor = self.conv(x)
    if x.sum() > -1e9:
        TORCHS["insist"](x.shape[0] > 0)
        return self.norm(y) + y
    return self.norm(y)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "forward", [artefact_of_tracing, artefact_of_words, artefact_of_a_type, artefact_in_torch]
)
def test_what_only_tracing_raises_is_a_way_all_the_same(forward: Callable[[Any, Tensor], Tensor]) -> None:
    layers = ConvNorm()
    model = prepared(Block(forward, conv=layers.conv, norm=layers.norm), X)
    result = fold(model, X, verify=False)
    assert names(result.report.kept) == ["norm"]
    assert error(model, result.model, X) <= TOLERANCE
