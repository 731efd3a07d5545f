"""Batches as users have them (tensors, tuples that start with the inputs, dicts) as calls of a model."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bntool.errors import RunError, UsageError
from bntool.sources import inputs as sources_inputs
from bntool.sources.importing import said

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Call:
    """One call of a model: `model(*args, **kwargs)`."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, model: nn.Module) -> Any:
        return model(*self.args, **self.kwargs)

    def try_on(self, model: nn.Module) -> Any:
        """`run` as the first one of a model. Raises: RunError when the model does not take these inputs."""
        try:
            return self.run(model)
        except Exception as problem:
            advice = "Do the inputs have the shapes and types it expects?"
            raise RunError(f"the model raised {said(problem)}", where="inputs", next=advice) from problem

    def tensors(self) -> list[Tensor]:
        return [v for v in (*self.args, *self.kwargs.values()) if isinstance(v, Tensor)]

    def first_sample(self) -> Call:
        """The call for the first sample alone; the call itself where not every tensor is a batch."""
        if self.size < 2 or any(not t.dim() or len(t) != self.size for t in self.tensors()):
            return self
        args = tuple(v[:1] if isinstance(v, Tensor) else v for v in self.args)
        return Call(args, {k: v[:1] if isinstance(v, Tensor) else v for k, v in self.kwargs.items()})

    @property
    def size(self) -> int:
        """How many samples: the length of the first tensor, 1 for a call without."""
        return next((len(t) for t in self.tensors() if t.dim()), 1)


def calls(model: nn.Module, data: Iterable[Any], *, inputs: int | None = None) -> Iterator[Call]:
    """Every batch of `data` as a call of `model`, on the model's device.

    `inputs` is how many leading items of a tuple are inputs; by default as many as `forward` requires.
    """
    taken = inputs or required_inputs(model)
    device = device_of(model)
    for index, batch in enumerate(data):
        yield as_call(model, batch, taken, device, index)


def as_call(model: nn.Module, batch: Any, inputs: int, device: torch.device, index: int = 0) -> Call:
    if isinstance(batch, Tensor):
        return Call((batch.to(device),), {})
    if isinstance(batch, Mapping):
        names = accepted_names(model)
        kept = {k: v for k, v in batch.items() if names is None or k in names}
        return Call((), {k: _moved(v, device) for k, v in kept.items()})
    if isinstance(batch, Sequence) and batch and not isinstance(batch, str):
        return Call(tuple(_moved(v, device) for v in batch[:inputs]), {})
    raise UsageError(
        f"batch {index} is a {type(batch).__name__}",
        where="data",
        next="Give tensors, tuples or dicts of inputs.",
    )


def example_call(model: nn.Module, example_inputs: Any) -> Call:
    """Example inputs as a call: a tuple is all arguments, a dict all keywords, a tensor the one argument."""
    device = device_of(model)
    args, kwargs = sources_inputs.as_call(example_inputs)
    return Call(tuple(_moved(v, device) for v in args), {k: _moved(v, device) for k, v in kwargs.items()})


def required_inputs(model: nn.Module) -> int:
    """How many positional arguments `forward` cannot do without, at least one."""
    parameters = inspect.signature(model.forward).parameters.values()
    required = [p for p in parameters if p.kind in POSITIONAL and p.default is p.empty]
    return max(1, len(required))


def accepted_names(model: nn.Module) -> set[str] | None:
    """The keyword arguments `forward` takes; None when it takes any."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters}


def device_of(model: nn.Module) -> torch.device:
    held = next((t for t in (*model.parameters(), *model.buffers())), None)
    return held.device if held is not None else torch.device("cpu")


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
