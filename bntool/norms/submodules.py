"""Finding and exchanging modules inside a model by their qualified names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


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


@contextmanager
def state_kept(model: nn.Module, moved: Collection[nn.Module] = ()) -> Iterator[None]:
    """`modes_kept`; what forwards write into buffers is undone too, but for those of `moved`."""
    held = {module: dict(module._buffers) for module in model.modules() if module not in moved}
    tensors = [t for buffers in held.values() for t in buffers.values() if t is not None and not is_lazy(t)]
    before = [(tensor, tensor.clone()) for tensor in tensors]
    try:
        with modes_kept(model):
            yield
    finally:
        for module, buffers in held.items():
            module._buffers.update(buffers)  # a forward may have put others in their places
        _written_back(before)


def _written_back(values: Iterable[tuple[Tensor, Tensor]]) -> None:
    for tensor, value in values:
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            tensor.copy_(value)
