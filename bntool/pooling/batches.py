"""Batches as users have them (tensors, tuples that start with the inputs, dicts) as calls of a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from bntool.copying import own_inputs
from bntool.errors import BntoolError, LoadError, RunError, UsageError
from bntool.graphs.running import outputs_of
from bntool.sources import inputs as sources_inputs
from bntool.sources.importing import said

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Call:
    """One call of a model: `model(*args, **kwargs)`. `name` says which in messages."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str = "the inputs"

    def run(self, model: nn.Module) -> Any:
        """The outputs for copies of the inputs, into which a model may write.

        Raises: RunError naming the inputs when the model raises.
        """
        args, kwargs = own_inputs((self.args, self.kwargs))
        try:
            return outputs_of(model, args, kwargs)
        except BntoolError:
            raise
        except Exception as problem:
            where = f"{self.name}, {sources_inputs.in_words(args, kwargs)}"
            what = f"the model raised {said(problem)}"
            raise RunError(what, where=where, next=sources_inputs.advice(model)) from problem

    def changed(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The same call with other tensors, wherever they are in its arguments."""
        args, kwargs = tree_map_only(Tensor, change, (self.args, self.kwargs))
        return replace(self, args=args, kwargs=kwargs)

    def tensors(self) -> list[Tensor]:
        return [v for v in tree_leaves((self.args, self.kwargs)) if isinstance(v, Tensor)]

    def first_sample(self) -> Call:
        """The call for the first sample alone; the call itself where not every tensor is a batch."""
        if self.size < 2 or any(not t.dim() or len(t) != self.size for t in self.tensors()):
            return self
        return self.changed(lambda tensor: tensor[:1])

    @property
    def size(self) -> int:
        """How many samples: the length of the first tensor, 1 for a call without."""
        return next((len(t) for t in self.tensors() if t.dim()), 1)


def calls(model: nn.Module, data: Iterable[Any], *, inputs: int | None = None) -> Iterator[Call]:
    """Every batch of `data` as a call of `model`, on the model's device.

    `inputs` is how many leading items of a tuple are inputs; by default as many as `forward` requires.

    Raises: UsageError for what is no batch, LoadError when the data raise.
    """
    taken = inputs or required_inputs(model)
    if isinstance(data, Tensor | Mapping):
        what = f"the data is a {type(data).__name__}, not an iterable of batches"
        raise UsageError(what, where="data", next="Give a list of one batch, or cut it: x.split(64).")
    device = device_of(model)
    for index, batch in enumerate(_read(data)):
        yield as_call(model, batch, taken, device, index)


def _read(data: Iterable[Any]) -> Iterator[Any]:
    number, batches = 0, iter(data)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as problem:
            raise LoadError(
                f"the data raised {said(problem)}", where=f"batch {number} of the data"
            ) from problem
        yield batch
        number += 1


def as_call(model: nn.Module, batch: Any, inputs: int, device: torch.device, index: int = 0) -> Call:
    name = f"batch {index} of the data"
    if isinstance(batch, Tensor):
        return Call((batch.to(device),), {}, name)
    if isinstance(batch, Mapping):
        names = accepted_names(model)
        kept = {k: v for k, v in batch.items() if names is None or k in names}
        return Call((), kept, name).changed(lambda tensor: tensor.to(device))
    if isinstance(batch, Sequence) and batch and not isinstance(batch, str):
        return Call(tuple(batch[:inputs]), {}, name).changed(lambda tensor: tensor.to(device))
    raise UsageError(
        f"batch {index} is a {type(batch).__name__}",
        where="data",
        next="Give tensors, tuples or dicts of inputs.",
    )


def example_call(model: nn.Module, example_inputs: Any) -> Call:
    """Example inputs as a call: a tuple is all arguments, a dict all keywords, a tensor the one argument.

    Raises: UsageError for an empty batch.
    """
    device = device_of(model)
    call = Call(*sources_inputs.as_call(example_inputs)).changed(lambda tensor: tensor.to(device))
    if not call.size:
        raise UsageError("the inputs are empty", next="Give at least one item.")
    return call


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
    held = next(chain(model.parameters(), model.buffers()), None)
    return held.device if held is not None else torch.device("cpu")
