"""One list of samples: an op of every row of the tables, on small random values, for the laws to run on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bntool.algebra.affine import Array, Blocked
from bntool.algebra.moves import Index
from bntool.algebra.rules import NEED_SIZES

Run = Callable[..., Tensor]
IMAGE = (2, 4, 6, 6)


@dataclass(frozen=True)
class Sample:
    """`run` on inputs of these `shapes` is an op of `kind` with `attrs`; `index` where it only moves data."""

    name: str
    kind: str
    run: Run
    shapes: tuple[tuple[int, ...], ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[int, Array] = field(default_factory=dict)

    @property
    def varying(self) -> list[int]:
        """The inputs that are no constants."""
        return [port for port in range(len(self.shapes)) if port not in self.constants]

    def __call__(self, *values: Array) -> Array:
        return self.run(*map(torch.from_numpy, values)).numpy()

    def inputs(self, rng: np.random.Generator) -> list[Array]:
        values = [rng.standard_normal(s) for s in self.shapes]
        for port, value in self.constants.items():
            values[port] = value
        if self.kind == "matmul" and self.attrs.get("rows_sum_to_one"):
            values[0] = torch.from_numpy(values[0]).softmax(-1).numpy()
        return values


@dataclass(frozen=True)
class SampleSite:
    """A sample as the rules see it."""

    sample: Sample
    others: bool = False

    @property
    def attrs(self) -> Mapping[str, Any]:
        return self.sample.attrs

    @property
    def arity(self) -> int:
        return len(self.sample.shapes)

    def constant(self, port: int) -> Array | None:
        return self.sample.constants.get(port)

    def sizes(self, port: int) -> tuple[int, ...]:
        return self.sample.shapes[port]

    def out_sizes(self) -> tuple[int, ...]:
        return self.sample(*[np.zeros(s) for s in self.sample.shapes]).shape

    def index(self) -> Index | Blocked:
        numbered = np.arange(1.0, np.prod(self.sample.shapes[0]) + 1).reshape(self.sample.shapes[0])
        return self.sample(numbered).astype(np.int64) - 1

    def is_square(self) -> bool:
        return False

    def unsized(self, port: int) -> Blocked:
        return NEED_SIZES

    def read_by_others(self, port: int) -> bool:
        return self.others


def one(name: str, kind: str, run: Run, shape: tuple[int, ...] = IMAGE, **attrs: Any) -> Sample:
    return Sample(name, kind, run, (shape,), attrs)


def two(name: str, kind: str, run: Run, a: tuple[int, ...], b: tuple[int, ...], **attrs: Any) -> Sample:
    return Sample(name, kind, run, (a, b), attrs)


def masked_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The first row of every head sees nothing."""
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool)
    mask[0] = False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


CONSTANT = np.array([0.5, -2.0, 1.0, 3.0]).reshape(4, 1, 1)
PLANE = (-2, -1)
ROWS = (2, 3, 5, 4)
PASSES = [
    one("clone", "identity", torch.clone),
    one("relu", "relu", F.relu),
    one("leaky relu", "relu", F.leaky_relu),
    one("max pool", "max_pool", lambda x: F.max_pool2d(x, 3, 2, 1), dims=PLANE),
    one("average pool", "avg_pool", lambda x: F.avg_pool2d(x, 2), dims=PLANE),
    one("padded", "avg_pool", lambda x: F.avg_pool2d(x, 3, 1, 1), dims=PLANE, counts_padding=True),
    one("overhanging", "avg_pool", lambda x: F.avg_pool2d(x, 4, 4, ceil_mode=True), dims=PLANE),
    one("mean", "mean", lambda x: x.mean((2, 3)), dims=PLANE, keepdim=False),
    one("kept mean", "mean", lambda x: x.mean((2, 3), keepdim=True), dims=PLANE, keepdim=True),
    one("mean in the middle", "mean", lambda x: x.mean(2), dims=(-2,), keepdim=False),
    one("bicubic", "upsample", lambda x: F.interpolate(x, size=9, mode="bicubic"), dims=PLANE),
    one("nearest", "upsample", lambda x: F.interpolate(x, scale_factor=2), dims=PLANE),
    one("zeros", "pad", lambda x: F.pad(x, (1, 2)), widths=((1, 2),), mode="constant", value=0.0),
    one(
        "reflect", "pad", lambda x: F.pad(x, (1, 2, 0, 1), "reflect"), widths=((0, 1), (1, 2)), mode="reflect"
    ),
    two("sum", "add", torch.add, IMAGE, IMAGE),
    two("broadcast sum", "add", torch.add, IMAGE, (4, 1, 1)),
    two("difference", "sub", torch.sub, IMAGE, IMAGE),
    *[
        two("weighted sum", "combination", run, IMAGE, IMAGE, factors=factors, shift=1.0)
        for run, factors in (
            (lambda x, y: 3 * x - y + 1, (3.0, -1.0)),
            (lambda x, y: 0 * x - y + 1, (0.0, -1.0)),
        )
    ],
    two("product", "mul", torch.mul, IMAGE, IMAGE),
    two("gate", "mul", torch.mul, IMAGE, (2, 4, 1, 1)),
    two("quotient", "div", torch.div, IMAGE, IMAGE),
    *[
        Sample(f"constant {name}", kind, run, (IMAGE, (4, 1, 1))[::step], {}, {port: CONSTANT})
        for name, kind, run in (
            ("offset", "add", torch.add),
            ("difference", "sub", torch.sub),
            ("gain", "mul", torch.mul),
            ("quotient", "div", torch.div),
        )
        for port, step in ((1, 1), (0, -1))
    ],
    Sample(
        "gain of zero",
        "mul",
        torch.mul,
        (IMAGE, (4, 1, 1)),
        {},
        {1: CONSTANT * [[[0.0]], [[1]], [[1]], [[1]]]},
    ),
    one("number", "scalar", lambda x: 3 * x - 2, a=3.0, b=-2.0),
    two("matmul", "matmul", torch.matmul, (2, 3, 5, 5), ROWS),
    two("softmax", "matmul", torch.matmul, (2, 3, 5, 5), ROWS, rows_sum_to_one=True),
    Sample(
        "attention", "sdpa", F.scaled_dot_product_attention, (ROWS, ROWS, ROWS), {"rows_sum_to_one": True}
    ),
    Sample("masked attention", "sdpa", masked_attention, (ROWS, ROWS, ROWS), {"rows_sum_to_one": False}),
    two("concat", "concat", lambda *x: torch.cat(x, 1), IMAGE, (2, 3, 6, 6), dim=-3),
    two("concat rows", "concat", lambda *x: torch.cat(x, 2), IMAGE, IMAGE, dim=-2),
    one("flatten", "layout", lambda x: x.flatten(1)),
    one("tokens", "layout", lambda x: x.flatten(2).transpose(1, 2)),
    one("shuffle", "layout", lambda x: F.channel_shuffle(x, 2)),
    one("pixels", "layout", lambda x: F.pixel_unshuffle(x, 2)),
    one("slice", "layout", lambda x: x[:, 1:3, ::2]),
    one("roll", "layout", lambda x: x.roll(2, -1)),
    one("windows", "layout", lambda x: F.unfold(x, 3, padding=1)),
    one("repeat", "layout", lambda x: x.repeat(1, 2, 1, 1)),
]
