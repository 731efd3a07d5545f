"""One model of the zoo: built, folded, its norm kernels counted and its outputs compared. Runs as a process.

python -m tests.zoo.check timm,resnet10t,5435488,2x3x64x64,14,14
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.random_norms import randomise_norms
from tests.vision import network

# float64 rounds at 2.2e-16; depth and cancellation may cost six digits more, a wrong fold costs all
LIMIT = 1e-9
# an error is rounding if perturbing the last bit of the original's weights moves its outputs as far
AMPLIFICATION = 10.0


@dataclass(frozen=True)
class Row:
    """A line of zoo.csv: `foldable` of the `norm_calls` can be folded exactly in module form."""

    source: str
    model: str
    params: int
    input: str
    norm_calls: int
    foldable: int

    @classmethod
    def parse(cls, line: str) -> Row:
        source, model, params, shape, calls, foldable = line.strip().split(",")
        return cls(source, model, int(params), shape, int(calls), int(foldable))

    @property
    def line(self) -> str:
        return ",".join(str(value) for value in asdict(self).values())

    @property
    def left(self) -> int:
        return self.norm_calls - self.foldable


@dataclass(frozen=True)
class Outcome:
    """What folding one model did. `noise` is the original's own rounding, measured only where it matters."""

    model: str
    before: int = 0
    after: int = 0
    allowed: int = 0
    error: float = float("inf")
    noise: float = 0.0
    class_kept: bool = False
    fold_s: float = 0.0
    failure: str = ""

    @property
    def exact(self) -> bool:
        return self.error <= max(LIMIT, AMPLIFICATION * self.noise)

    @property
    def passed(self) -> bool:
        return not self.failure and self.exact and self.class_kept and self.after <= self.allowed


class NormKernels(TorchDispatchMode):
    """Counts the batch norm kernels that really run."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "batch_norm" in func.name()
        return func(*args, **(kwargs or {}))


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], int]:
    """The outputs, and how many norm kernels it took to make them."""
    with torch.no_grad(), NormKernels() as kernels:
        outputs = model(*inputs)
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)], kernels.count


def relative_error(got: list[Tensor], want: list[Tensor]) -> float:
    """The largest difference over the largest value, per output; infinite where the structure differs."""
    if [x.shape for x in got] != [x.shape for x in want]:
        return float("inf")
    errors = [
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-300)) for a, b in zip(got, want, strict=True)
    ]
    return max((e if e == e else float("inf") for e in errors), default=float("inf"))


def rounding_noise(model: nn.Module, inputs: tuple[Tensor, ...], want: list[Tensor]) -> float:
    """How far the outputs move when every weight's last bit does. Changes `model`."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            bits = torch.randint(-1, 2, p.shape, generator=generator).to(p)
            p.mul_(1 + bits * torch.finfo(p.dtype).eps)
    return relative_error(run(model, inputs)[0], want)


def prepare(row: Row) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    model = network(row.source, row.model).double()
    inputs = (torch.randn([int(n) for n in row.input.split("x")], dtype=torch.double),)
    return randomise_norms(model, inputs), inputs


def check(row: Row, fold: Callable[[nn.Module, tuple[Tensor, ...]], nn.Module]) -> Outcome:
    """Folds the row's model with `fold` and judges the result."""
    model, inputs = prepare(row)
    want, before = run(model, inputs)
    start = time.perf_counter()
    folded = fold(model, inputs)
    fold_s = time.perf_counter() - start
    got, after = run(folded, inputs)
    kept = type(folded) is type(model)
    del folded
    error = relative_error(got, want)
    noise = rounding_noise(model, inputs, want) if error > LIMIT else 0.0
    return Outcome(row.model, before, after, before - row.foldable, error, noise, kept, fold_s)


def bntool_fold(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    from bntool import fold

    return fold(model, inputs).model


def main() -> None:
    row = Row.parse(sys.argv[1])
    try:
        outcome = check(row, bntool_fold)
    except Exception as error:  # a model that fails is a line of the table, and the others still run
        outcome = Outcome(row.model, allowed=row.left, failure=f"{type(error).__name__}: {error}"[:200])
    print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
