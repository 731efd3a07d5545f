"""Grows a random network value by value, on real tensors, so that every step fits the shapes before it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tests.fuzz.networks import Net, Step
from tests.random_norms import has_statistics

T = TypeVar("T")
# keep the numbers in a range where float64 has digits to spare
MAX_VALUE = 1e4
MAX_SIZE = 20_000


class Growth:
    """A network being grown: its values so far, as tensors, and the dice."""

    def __init__(self, rng: random.Random, x: Tensor) -> None:
        self.rng = rng
        self.generator = torch.Generator().manual_seed(rng.randrange(2**31))
        self.net = Net().to(x.dtype).eval()
        self.values = [x.clone()]

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def one(self, options: Sequence[T]) -> T:
        return self.rng.choice(options)

    def pick(self, *ranks: int) -> int | None:
        """The number of a value of one of these ranks, most often a recent one."""
        fitting = [n for n, v in enumerate(self.values) if v.ndim in ranks]
        if not fitting:
            return None
        return fitting[-1] if self.chance(0.7) else self.one(fitting)

    def partner(self, n: int) -> int:
        """A value of the same shape: another one, or itself."""
        shape = self.values[n].shape
        return self.one([m for m, v in enumerate(self.values) if v.shape == shape])

    def random(self, *shape: int, scale: float = 1.0) -> Tensor:
        value = torch.randn(shape, generator=self.generator, dtype=torch.double) * scale
        return value.to(self.values[0].dtype)

    def emit(self, op: str, *inputs: int, **args: Any) -> bool:
        return self.accept(Step(op, inputs, args=args))

    def accept(self, step: Step) -> bool:
        """Runs the step on the real values; keeps it if its result is usable: large or all zero is not.

        (What cancels out, like `y - y`, hides whatever is wrong, or left, in front of it.)
        """
        before = [v.clone() for v in self.values]
        with torch.no_grad():
            try:
                value = self.net.run(step, self.values)
            except (RuntimeError, ValueError, IndexError):
                self.values = before
                return False
        if not value.numel() or value.numel() > MAX_SIZE or not 0 < value.abs().max() < MAX_VALUE:
            self.values = before
            return False
        if step.layer and self.tells_nothing(step, value):
            self.values = before
            return False
        self.net.steps.append(step)
        self.values.append(value)
        return True

    def tells_nothing(self, step: Step, value: Tensor) -> bool:
        """Whether another input gives the same: a dilated convolution may read what is padded and no more.

        (In front of it anything folds, for as long as the input has this size.)
        """
        other = torch.Generator().manual_seed(0)  # the dice are for the network
        others = [v + torch.randn(v.shape, generator=other).to(v.dtype) for v in self.values]
        with torch.no_grad():
            return torch.equal(self.net.run(step, others), value)

    def layer(self, module: nn.Module, kind: str, n: int) -> bool:
        """A new layer under a new name, called on value `n`, sometimes by keyword."""
        name = f"{kind}{len(list(self.net.children()))}"
        self.draw(module)
        self.net.add_module(name, module.to(self.dtype_for(kind, n)).eval())
        keyword = {"keyword": True} if self.chance(0.1) else {}
        if self.accept(Step(kind, (n,), name, keyword)):
            return True
        delattr(self.net, name)
        return False

    def dtype_for(self, kind: str, n: int) -> torch.dtype:
        """The value's own; norms of half-precision networks are often left in float32."""
        dtype = self.values[n].dtype
        low = dtype in (torch.float16, torch.bfloat16)
        return torch.float32 if low and kind == "norm" and self.chance(0.3) else dtype

    def again(self) -> bool:
        """An existing layer on another value: weights are shared between calls."""
        layers = [s for s in self.net.steps if s.layer]
        n = self.pick(2, 3, 4, 5)
        return bool(layers) and n is not None and self.accept(self._on(self.one(layers), n))

    @staticmethod
    def _on(step: Step, n: int) -> Step:
        return Step(step.op, (n,), step.layer, step.args)

    def draw(self, module: nn.Module) -> None:
        """Random weights, and random statistics, gammas (some zero, some negative) and betas for norms."""
        with torch.no_grad():
            for tensor in [*module.parameters(), *module.buffers()]:
                if tensor.is_floating_point():
                    fan_in = max(tensor[0].numel(), 1) if tensor.ndim > 1 else 4
                    tensor.copy_(self.random(*tensor.shape, scale=fan_in**-0.5))
            if has_statistics(module):
                self.draw_norm(module)

    def draw_norm(self, norm: nn.Module) -> None:
        assert isinstance(norm.running_var, Tensor)
        channels = len(norm.running_var)
        norm.running_var.copy_(torch.exp(self.random(channels, scale=0.5)))
        if isinstance(norm.weight, Tensor):
            gamma = self.random(channels).abs() + 0.2
            if self.chance(0.4):
                gamma = gamma * torch.where(self.random(channels) < -0.5, -1.0, 1.0)
            if self.chance(0.15):
                gamma[0] = 0
            norm.weight.copy_(gamma)
