"""One random case a seed: a network, the inputs to compare on, and how far rounding may move its outputs."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tests.fuzz.growth import Growth
from tests.fuzz.moves import MOVES
from tests.fuzz.networks import BATCH_CUTS, Net, Routed

SHAPES = ((3, 4), (3, 5, 6), (3, 4, 16), (3, 3, 8, 8), (3, 4, 6, 6), (3, 6, 7, 5), (2, 2, 4, 4, 4))
# most cases are judged in float64, where an error is an error
DTYPES = (torch.float64,) * 8 + (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Case:
    """`inputs` differ in batch size, sign and scale."""

    seed: int
    model: Net | Routed
    inputs: list[Tensor]
    dtype: torch.dtype

    @property
    def exact(self) -> bool:
        return self.dtype == torch.float64

    @property
    def cuts_batches(self) -> bool:
        """Whether what can fold with one batch may not with another."""
        nets = [m for m in self.model.modules() if isinstance(m, Net)]
        return any(step.op in BATCH_CUTS for net in nets for step in net.steps)


def grow(rng: random.Random, x: Tensor, steps: int) -> Net:
    growth = Growth(rng, x)
    moves, weights = zip(*MOVES, strict=True)
    for move in rng.choices(moves, weights, k=steps):
        move(growth)
    read = {i for step in growth.net.steps for i in step.inputs}
    loose = [n for n in range(1, len(growth.values)) if n not in read]
    growth.net.outputs += [n for n in loose if n not in growth.net.outputs] or [len(growth.values) - 1]
    return growth.net


def usable(model: nn.Module, inputs: list[Tensor]) -> bool:
    """Runs on every input, with finite outputs that are not all one number."""
    try:
        with torch.no_grad():
            outputs = [out for x in inputs for out in tree_leaves(model(x.clone()))]
    except (RuntimeError, ValueError, IndexError):
        return False
    return all(out.numel() and torch.isfinite(out).all() and out.abs().max() < 1e6 for out in outputs)


def stem(rng: random.Random, x: Tensor) -> nn.Module:
    return nn.Identity() if rng.random() < 0.5 else nn.Dropout()


def attempt(rng: random.Random, dtype: torch.dtype) -> tuple[Net | Routed, Tensor]:
    shape = rng.choice(SHAPES)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(rng.randrange(2**31)), dtype=dtype)
    if rng.random() < 0.12:
        blocks = [grow(rng, x, rng.randrange(3, 9)) for _ in range(rng.choice((2, 3)))]
        return Routed(blocks, stem(rng, x)).eval(), x
    return grow(rng, x, rng.randrange(4, 22)), x


def build(seed: int) -> Case:
    """The case of this seed; the same on every machine. Draws again until the network runs."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    dtype = rng.choice(DTYPES)
    while True:
        model, x = attempt(rng, dtype)
        inputs = [x, -x[:2] * 0.5, torch.cat([x.flip(0) * 3, x[:1], -x])]
        if usable(model, inputs):
            return Case(seed, model, inputs, dtype)
