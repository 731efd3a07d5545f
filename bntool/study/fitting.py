"""Make data and model fit each other: shape the inputs as the model takes them, read its output as a score.

Everything that is changed is said in the data's notes; what cannot be made to fit is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bntool.errors import UsageError
from bntool.study.data import CLASSIFICATION, REGRESSION, Data, Part

Shape = tuple[int, ...]


def fit_inputs(data: Data, wanted: tuple[Tensor, ...]) -> Data:
    """Data whose inputs have the shapes of the model's example inputs `wanted` (all but the batch).

    Raises: UsageError when no sensible change does it.
    """
    if len(wanted) == 2 and len(data.train.inputs) == 1 and wanted[0].shape[1:] == wanted[1].shape[1:]:
        data = paired(data)
    if len(wanted) != len(data.train.inputs):
        what = f"the model takes {len(wanted)} inputs, the data have {len(data.train.inputs)}"
        raise UsageError(what, where=data.name, next="Give data made for this model: --data file.py:factory.")
    shapes = [tuple(w.shape[1:]) for w in wanted]
    have = [tuple(x.shape[1:]) for x in data.train.inputs]
    if shapes == have:
        return data
    if any(not w.is_floating_point() for w in wanted):
        raise UsageError(
            "the model takes indices (integers), which numbers cannot be turned into",
            where=data.name,
            next="Give data made for this model: --data file.py:factory.",
        )

    def shaped(part: Part) -> Part:
        pairs = zip(part.inputs, shapes, strict=True)
        return Part(tuple(reshape(x, s, data.name) for x, s in pairs), part.targets)

    note = f"inputs {text(have[0])} shaped as the model takes them, {text(shapes[0])}"
    return replace(data, train=shaped(data.train), test=shaped(data.test)).noting(note)


def text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"


def reshape(x: Tensor, shape: Shape, name: str) -> Tensor:
    """Flatten, stretch and repeat `x` (N, ...) into (N, *shape): stretch space, repeat channels."""
    have = tuple(x.shape[1:])
    if have == shape:
        return x
    if len(shape) == 1:
        return stretched(x.flatten(1).unsqueeze(1), shape, "linear").flatten(1)
    if len(shape) == 2:
        return channels(stretched(x.flatten(1).unsqueeze(1), shape[1:], "linear"), shape[0])
    if len(shape) == 3:
        return channels(stretched(as_image(x, name), shape[1:], "bilinear"), shape[0])
    if len(shape) == 4:
        image = channels(stretched(as_image(x, name), shape[2:], "bilinear"), shape[0])
        return image.unsqueeze(2).expand(-1, -1, shape[1], -1, -1).contiguous()
    raise UsageError(f"cannot shape {text(have)} as {text(shape)}", where=name)


def stretched(x: Tensor, size: Shape, mode: str) -> Tensor:
    if tuple(x.shape[2:]) == size:
        return x
    return nn.functional.interpolate(x, size=size, mode=mode, align_corners=False)


def as_image(x: Tensor, name: str) -> Tensor:
    """(N, C, H, W) from images, or from vectors with a square number of values."""
    if x.dim() == 4:
        return x
    if x.dim() == 3:
        return x.unsqueeze(1)
    side = round(x[0].numel() ** 0.5)
    if side * side != x[0].numel():
        raise UsageError(f"{x[0].numel()} values are not an image", where=name)
    return x.reshape(len(x), 1, side, side)


def channels(x: Tensor, count: int) -> Tensor:
    """Repeat a single channel, or average down to one and repeat."""
    if x.shape[1] == count:
        return x
    return x.mean(1, keepdim=True).expand(-1, count, *x.shape[2:]).contiguous()


def paired(data: Data) -> Data:
    """Two inputs a row: an example and another one; the target says whether their classes differ (0:
    same).
    """
    if data.task != CLASSIFICATION:
        raise UsageError("the model takes pairs, which need classes", where=data.name)

    def pairs(part: Part, seed: int) -> Part:
        generator = torch.Generator().manual_seed(seed)
        other = torch.randint(len(part), (len(part),), generator=generator)
        same = torch.rand(len(part), generator=generator) < 0.5
        for row in same.nonzero().flatten().tolist():
            members = (part.targets == part.targets[row]).nonzero().flatten()
            other[row] = members[torch.randint(len(members), (1,), generator=generator)]
        differ = (part.targets != part.targets[other]).long()
        return Part((part.inputs[0], part.inputs[0][other]), differ)

    note = "the model takes two inputs: pairs of examples, and the question is whether their classes differ"
    return replace(data, train=pairs(data.train, 1), test=pairs(data.test, 2)).noting(note)


def readout(output: Any) -> Tensor:
    """One row of numbers an example: the first tensor of a dict or tuple; maps and sequences are averaged.

    Shapes: (N, K, ...) -> (N, K); (N,) -> (N, 1).
    """
    while isinstance(output, Mapping | tuple | list):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    assert isinstance(output, Tensor), type(output)
    if (
        output.dim() < 2
    ):  # one number an example, which a target of one number (N, 1) must not be broadcast to
        return output.reshape(-1, 1)
    return output.flatten(2).mean(2) if output.dim() > 2 else output


def fit_targets(data: Data, output: Any) -> Data:
    """Data whose targets the model's output can answer: fewer classes, or its values as numbers.

    Raises: UsageError when the output is too small for the targets.
    """
    many = readout(output).shape[1]
    notes = []
    raw = output
    while isinstance(raw, Mapping | tuple | list):
        raw = next(iter(raw.values() if isinstance(raw, Mapping) else raw))
    if raw.dim() > 2:
        notes.append(f"the model's output {text(tuple(raw.shape[1:]))} is averaged to {many} numbers")
    if data.task == REGRESSION:
        return fit_regression(data, many).noting(*notes)
    if many == 1:
        notes.append("the model gives one number: it is trained to give the class number (regression)")
        return as_numbers(data).noting(*notes)
    if many < data.classes:
        notes.append(f"the model has {many} outputs: only the classes 0 to {many - 1} are used")
        data = only_classes(data, many)
    elif many > data.classes:
        notes.append(f"the model has {many} outputs for {data.classes} classes: the rest is never right")
    return data.noting(*notes)


def fit_regression(data: Data, many: int) -> Data:
    wide = data.train.targets[0].numel()
    if wide != many:
        what = f"the model gives {many} numbers, a target has {wide}"
        raise UsageError(what, where=data.name, next="Change the model's last layer or the data.")

    def flat(part: Part) -> Part:
        return Part(part.inputs, part.targets.flatten(1) if part.targets.dim() > 1 else part.targets[:, None])

    return replace(data, train=flat(data.train), test=flat(data.test))


def as_numbers(data: Data) -> Data:
    mean, std = data.train.targets.float().mean(), data.train.targets.float().std()

    def numbers(part: Part) -> Part:
        return Part(part.inputs, ((part.targets.float() - mean) / std)[:, None])

    return replace(data, train=numbers(data.train), test=numbers(data.test))


def only_classes(data: Data, count: int) -> Data:
    def kept(part: Part) -> Part:
        return part.rows((part.targets < count).nonzero().flatten())

    return replace(data, train=kept(data.train), test=kept(data.test))
