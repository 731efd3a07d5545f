"""Networks as data: steps over numbered values, interpreted by one module that torch.fx can trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Step:
    """`values[n] = op(*values[inputs], **args)`; a step with a `layer` calls that submodule."""

    op: str
    inputs: tuple[int, ...]
    layer: str = ""
    args: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        given = [f"v{i}" for i in self.inputs] + [f"{k}={v!r}" for k, v in self.args.items()]
        return f"{self.layer or self.op}({', '.join(given)})"


def functional_conv(net: nn.Module, x: Tensor, name: str, keyword: bool, times: str | float = "") -> Tensor:
    weight, bias = getattr(net, f"{name}_weight"), getattr(net, f"{name}_bias")
    if times:
        weight = weight * (getattr(net, times) if isinstance(times, str) else times)
    conv = (F.linear, F.linear, F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 1]
    return conv(x, weight, bias=bias) if keyword else conv(x, weight, bias)


def functional_norm(net: nn.Module, x: Tensor, name: str, keyword: bool) -> Tensor:
    mean, var = getattr(net, f"{name}_mean"), getattr(net, f"{name}_var")
    weight, bias = getattr(net, f"{name}_weight"), getattr(net, f"{name}_bias")
    if keyword:
        return F.batch_norm(
            input=x, running_var=var, running_mean=mean, bias=bias, weight=weight, training=False, eps=1e-3
        )
    return F.batch_norm(x, mean, var, weight, bias, False, 0.1, 1e-4)


def attend(net: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)).softmax(-1) @ v


def shuffle(net: nn.Module, x: Tensor, groups: int) -> Tensor:
    """Channel shuffle, as ShuffleNet writes it."""
    return x.unflatten(1, (groups, x.shape[1] // groups)).transpose(1, 2).flatten(1, 2)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "functional_conv": functional_conv,
    "functional_norm": functional_norm,
    "attend": attend,
    "shuffle": shuffle,
    "relu": lambda net, x: F.relu(x),
    "relu_": lambda net, x: F.relu(x, inplace=True),
    "sigmoid": lambda net, x: x.sigmoid(),
    "gelu": lambda net, x: F.gelu(x),
    "leaky": lambda net, x: F.leaky_relu(x, 0.2),
    "add": lambda net, x, y: x + y,
    "add_": lambda net, x, y: x.add_(y),
    "add_alpha": lambda net, x, y: torch.add(x, y, alpha=2),
    "sub": lambda net, x, y: x - y,
    "mul": lambda net, x, y: x * y,
    "scalar_mul": lambda net, x, by: x * by,
    "scalar_add": lambda net, x, by: by + x,
    "scalar_div": lambda net, x, by: x / by,
    "scalar_mul_": lambda net, x, by: x.mul_(by),
    "neg": lambda net, x: -x,
    "layer_scale": lambda net, x, name: x * getattr(net, name),
    "weight_read": lambda net, x, name: x + net.get_submodule(name).weight.mean(),
    "cat": lambda net, *xs: torch.cat(xs, 1),
    "cat_keyword": lambda net, *xs: torch.cat(tensors=xs, dim=1),
    "cat_batch": lambda net, *xs: torch.cat(xs),
    "head_slice": lambda net, x, size: x[:, :size],
    "tail_slice": lambda net, x, size: x[:, size:],
    "chunk": lambda net, x, part: x.chunk(2, 1)[part],
    "split": lambda net, x, sizes, part: x.split(sizes, 1)[part],
    "flip": lambda net, x: x.flip(-1),
    "roll": lambda net, x: x.roll(1, -1),
    "flatten": lambda net, x: x.flatten(1),
    "tokens": lambda net, x: x.flatten(2).transpose(1, 2),
    "channels_first": lambda net, x: x.transpose(1, 2),
    "merge_tokens": lambda net, x: x.flatten(0, 1),
    "reshape_as": lambda net, x, y: x.reshape_as(y),
    "mean": lambda net, x, dims: x.mean(dims),
    "avg_pool": lambda net, x, pool, **args: getattr(F, pool)(x, **args),
    "max_pool": lambda net, x, pool, **args: getattr(F, pool)(x, **args),
    "upsample": lambda net, x, mode: F.interpolate(x, scale_factor=2, mode=mode),
    "pixel_shuffle": lambda net, x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda net, x: F.pixel_unshuffle(x, 2),
    "pad": lambda net, x, mode: F.pad(x, (1, 1) * (x.ndim - 2), mode),
    "cast": lambda net, x, dtype: x.to(dtype),
    "contiguous": lambda net, x: x.contiguous(),
    "detach": lambda net, x: x.detach(),
}


#: what they leave of a batch is another share of every other batch
BATCH_CUTS: dict[str, Callable[..., Tensor]] = {
    "first_of_batch": lambda net, x, size: x[:size],
    "rest_of_batch": lambda net, x, size: x[size:],
    "last_of_batch": lambda net, x, size: x[-size:],
    "all_but_last_of_batch": lambda net, x, size: x[:-size],
    "narrowed_batch": lambda net, x, size: x.narrow(0, size, 1),
    "piece_of_batch": lambda net, x, size: x.split(size)[-1],
    "half_of_batch": lambda net, x, size: x.chunk(2)[size % 2],
}
FUNCTIONS |= BATCH_CUTS


class Net(nn.Module):
    """Runs `steps`; value 0 is the input, `outputs` are value numbers: one gives a tensor, more a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.outputs: list[int] = []

    def run(self, step: Step, values: list[Tensor]) -> Tensor:
        given = [values[i] for i in step.inputs]
        if not step.layer:
            return FUNCTIONS[step.op](self, *given, **step.args)
        layer = self.get_submodule(step.layer)
        return layer(input=given[0]) if step.args.get("keyword") else layer(*given)

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for step in self.steps:
            values.append(self.run(step, values))
        outputs = tuple(values[i] for i in self.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def describe(self) -> str:
        lines = [f"v{n} = {step}" for n, step in enumerate(self.steps, 1)]
        used = {step.layer for step in self.steps if step.layer}
        layers = [f"{n}: {m}" for n, m in self.named_children() if n in used]
        return "\n".join([*layers, *lines, "return " + ", ".join(f"v{i}" for i in self.outputs)])


class Routed(nn.Module):
    """Control flow on the data's values, which torch.fx cannot trace; the blocks inside it can be."""

    def __init__(self, blocks: list[Net], stem: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.stem(x)
        outputs = {"first": self.blocks[0](x)}
        if x.mean() > 0:
            outputs["second"] = self.blocks[1](x)
        else:
            outputs["second"] = self.blocks[0](x * 0.5)
        if len(self.blocks) > 2 and x.abs().max() > 1:
            outputs["third"] = self.blocks[2](-x)
        return outputs

    def describe(self) -> str:
        return "\n\n".join([f"stem: {self.stem}", *(b.describe() for b in self.blocks)])  # type: ignore[operator]
