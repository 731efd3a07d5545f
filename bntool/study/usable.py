"""Data that no training could learn from are refused before any network is trained on them."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from bntool.errors import UsageError
from bntool.study.data import CLASSIFICATION, FEWEST, Data, Part


def insist_on_values(data: Data) -> None:
    """Raises: UsageError where inputs or targets are NaN or infinite, naming the first example."""
    for name, part in (("training", data.train), ("test", data.test)):
        for what, values in (*(("inputs", x) for x in part.inputs), ("targets", part.targets)):
            row = first_bad(values)
            if row is not None:
                raise UsageError(
                    f"{what} of example {row} of the {name} part are NaN or infinite",
                    where=data.name,
                    next="Leave such examples out, or fill them in.",
                )


def first_bad(values: Tensor) -> int | None:
    bad = ~values.isfinite().reshape(len(values), -1).all(1)
    return int(bad.nonzero()[0]) if bad.any() else None


def one_class_each(data: Data) -> Data:
    """Classification data with targets (N,). Raises: UsageError where there is more than one an example."""
    if data.task != CLASSIFICATION:
        return data
    if data.train.targets[0].numel() != 1:
        shape = "x".join(map(str, data.train.targets.shape[1:]))
        raise UsageError(
            f"a target is {shape} whole numbers, not one class",
            where=data.name,
            next="Give a loss of your own: --loss file.py:function.",
        )
    train, test = (Part(part.inputs, part.targets.flatten()) for part in (data.train, data.test))
    return replace(data, train=train, test=test)


def insist_on_a_question(data: Data) -> None:
    """Raises: UsageError where the targets are all the same, are no classes, or hardly any are left."""
    targets = data.train.targets
    if len(data.train) + len(data.test) < FEWEST or not len(data.test):
        what = f"only {len(data.train)} training and {len(data.test)} test examples are left"
        raise UsageError(what, where=data.name, next="Give more, or a model with as many outputs as classes.")
    if data.task == CLASSIFICATION and int(min(targets.min(), data.test.targets.min())) < 0:
        raise UsageError("a class is negative", where=data.name, next="Number the classes from 0.")
    if bool((targets == targets[0]).all()):
        raise UsageError("all targets are the same", where=data.name, next="There is nothing to learn.")
