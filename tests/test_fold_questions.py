"""Whatever a forward asks of its input before it reads the input of a norm once more, the norm stays."""

from __future__ import annotations

import collections
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bntool.fold import fold
from tests.folding import TOLERANCE, Block, ConvNorm, error, names, prepared

X = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(13), dtype=torch.float64)


def matched(x: Tensor) -> bool:
    match x.shape[1]:
        case 4:
            return True
        case _:
            return False


def caught(work: Callable[[], Any]) -> bool:
    try:
        work()
    except (TypeError, RuntimeError, AttributeError):
        return True
    return False


TABLE = {"float64": True}

QUESTIONS: dict[str, Callable[[Tensor], Any]] = {
    "is a tensor": lambda x: isinstance(x, Tensor),
    "is of the type": lambda x: type(x) is Tensor,
    "equal types": lambda x: type(x) == Tensor,  # noqa: E721
    "one of the types": lambda x: type(x) in (Tensor, nn.Parameter),
    "name of the type": lambda x: type(x).__name__ == "Tensor",
    "is not traced": lambda x: not isinstance(x, torch.fx.Proxy),
    "is a size": lambda x: isinstance(x.shape, torch.Size),
    "is an int": lambda x: isinstance(x.shape[1], int),
    "is of type int": lambda x: type(x.shape[1]) is int,
    "is a list": lambda x: isinstance(x.tolist(), list),
    "is a number": lambda x: isinstance(x.sum().item(), float),
    "in a set": lambda x: x.shape[1] in {1, 4},
    "looked up": lambda x: {4: True}.get(x.shape[1], False),
    "dtype in a set": lambda x: x.dtype in {torch.float64},
    "dtype looked up": lambda x: {torch.float64: True}.get(x.dtype, False),
    "dtype as a word": lambda x: TABLE.get(str(x.dtype).removeprefix("torch."), False),
    "device in a set": lambda x: x.device in {torch.device("cpu")},
    "device looked up": lambda x: {torch.device("cpu"): True}.get(x.device, False),
    "kind of device looked up": lambda x: {"cpu": True}.get(x.device.type, False),
    "counted": lambda x: collections.Counter(x.shape)[8] == 2,
    "counted in a tuple": lambda x: tuple(x.shape).count(8) == 2,
    "found": lambda x: list(x.shape).index(8) == 2,
    "different sizes": lambda x: len(set(x.shape)) == 3,
    "as a word": lambda x: str(x.shape[1]) == "4",
    "in words": lambda x: f"{x.shape[1]} channels" == "4 channels",
    "formatted": lambda x: f"{x.shape[1]:03d}" == "004",
    "by percent": lambda x: "%d" % x.shape[1] == "4",  # noqa: UP031
    "as it is written": lambda x: repr(x.shape[1]) == "4",
    "written in words": lambda x: f"{x.shape[1]!r}" == "4",
    "joined": lambda x: "x".join(map(str, x.shape[1:])) == "4x8x8",
    "matched": matched,
    "address": lambda x: x.data_ptr() != 0,
    "close": lambda x: math.isclose(x.shape[1], 4),
    "one of numpy's": lambda x: np.isin(x.shape[1], [4]),
    "array of numpy's": lambda x: np.all(np.array(x.shape[1:]) == np.array([4, 8, 8])),
    "divided": lambda x: divmod(x.shape[2], 3) == (2, 2),
    "rounded": lambda x: round(x.shape[2] / 3) == 3,
    "reduced": lambda x: functools.reduce(operator.mul, x.shape[1:]) == 256,
    "in binary": lambda x: bin(x.shape[1]) == "0b100",
    "bits": lambda x: x.shape[2].bit_length() == 4,
    "times a list": lambda x: [0] * x.shape[1] == [0, 0, 0, 0],
    "in a range": lambda x: x.shape[1] in range(2, 5),
    "between": lambda x: 2 < x.shape[1] < 5,
    "no attribute": lambda x: caught(lambda: x.no_such_name),  # type: ignore[attr-defined]
    "sum of data": lambda x: x.sum() > -1e9,
    "number of data": lambda x: x.sum().item() > -1e9,
    "numpy's sum of data": lambda x: x.detach().numpy().sum() > -1e9,
}


#: only with sizes is it known that these raise
IMPOSSIBLE: dict[str, Callable[[Tensor], Any]] = {
    "no sum": lambda x: caught(lambda: x + "word"),  # type: ignore[operator]
    "no view": lambda x: caught(lambda: x.view(-1, 7)),
}

CASES = [(name, inputs) for name in QUESTIONS for inputs in (X, None)] + [(name, X) for name in IMPOSSIBLE]


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize(("name", "inputs"), CASES)
def test_no_answer_is_missed(name: str, inputs: Tensor | None, form: str) -> None:
    layers = ConvNorm()

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y if {**QUESTIONS, **IMPOSSIBLE}[name](x) else self.norm(y)

    model = prepared(Block(forward, conv=layers.conv, norm=layers.norm), X)
    result = fold(model, inputs, verify=False, form=form)  # type: ignore[call-overload]
    assert names(result.report.kept) == ["norm"]
    assert error(model, result.model, X) <= TOLERANCE
    assert int is int  # the names that were told apart are the builtins again
    assert caught(lambda: hash([]))
