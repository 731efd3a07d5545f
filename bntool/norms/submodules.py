"""Finding and exchanging modules inside a model by their qualified names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def names_of(model: nn.Module) -> dict[nn.Module, str]:
    """Each module's first qualified name."""
    return {module: name for name, module in model.named_modules()}


def parent_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds `name`, and under what attribute."""
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside, every module is in its old train or eval mode afterwards."""
    before = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode
