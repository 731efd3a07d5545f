"""Fresh copies of the user's model: one per seed, with any argument of its factory varied."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from bntool.errors import UsageError
from bntool.sources import open_model, python_ref
from bntool.sources.importing import import_place
from bntool.sources.refs import PythonRef, parse

#: parameters of a factory that mean "how many layers"
DEPTH_NAMES = ("depth", "num_layers", "n_layers", "layers", "blocks", "num_blocks", "n_blocks")
INITS = ("default", "he", "xavier")
WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)

Vary = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class ModelSource:
    """Where fresh models come from: a reference, a callable, or a live module that is copied."""

    ref: str = ""
    maker: Callable[..., nn.Module] | None = None
    trust: bool = False

    @property
    def name(self) -> str:
        return self.ref or getattr(self.maker, "__name__", "model")

    def fresh(self, seed: int, init: str = "default", vary: Vary = ()) -> nn.Module:
        """A model with weights drawn from `seed`, as if never trained."""
        torch.manual_seed(seed)
        model = self.make(vary)
        if not self.draws_weights:
            restart(model)
        initialise(model, init)
        return model.train()

    @property
    def draws_weights(self) -> bool:
        """Whether making the model anew draws new weights (a factory), or gives stored ones."""
        return isinstance(self.maker, Factory) if self.maker else isinstance(parse(self.ref), PythonRef)

    def make(self, vary: Vary = ()) -> nn.Module:
        if self.maker is not None:
            return self.maker(**dict(vary))
        parsed = parse(self.ref)
        if vary and not isinstance(parsed, PythonRef):
            raise UsageError("only a Python factory has arguments to vary", where=self.ref)
        if isinstance(parsed, PythonRef):
            parsed = replace(parsed, kwargs={**parsed.kwargs, **dict(vary)})
        model = open_model(str(parsed), trust=self.trust).model
        if not isinstance(model, nn.Module):
            what = f"a {type(model).__name__} cannot be trained"
            raise UsageError(what, where=self.ref, next="Name Python code: file.py:factory.")
        return model

    def example_inputs(self) -> tuple[torch.Tensor, ...] | None:
        """The inputs that the model's file names, if it does, as a tuple."""
        if self.maker is not None:
            return None
        loaded = open_model(self.ref, trust=self.trust)
        if not loaded.has_inputs:
            return None
        found = loaded.example_inputs()
        return tuple(found.values()) if isinstance(found, dict) else tuple(found)

    def arguments(self) -> dict[str, Any]:
        """The factory's parameters with their values here: given, or default."""
        if self.maker is not None:
            return dict(defaults(getattr(self.maker, "factory", self.maker)))
        parsed = parse(self.ref)
        if not isinstance(parsed, PythonRef):
            return {}
        factory = python_ref.find(import_place(parsed), parsed)
        return {**defaults(factory), **parsed.kwargs}

    def depth_argument(self) -> tuple[str, int] | None:
        """The factory's argument that sets the number of layers, and its value; None when it has none."""
        known = self.arguments()
        for name in DEPTH_NAMES:
            if isinstance(known.get(name), int) and not isinstance(known[name], bool):
                return name, known[name]
        return None


@dataclass(frozen=True)
class Factory:
    """A function that makes a new model each time it is called."""

    factory: Callable[..., nn.Module]

    def __call__(self, **arguments: Any) -> nn.Module:
        return self.factory(**arguments)

    @property
    def __name__(self) -> str:
        return getattr(self.factory, "__name__", "model")


@dataclass(frozen=True)
class Copy:
    """A live module, copied each time it is called."""

    model: nn.Module

    def __call__(self) -> nn.Module:
        return copy.deepcopy(self.model)

    @property
    def __name__(self) -> str:
        return type(self.model).__name__


def source_of(model: Any, *, trust: bool = False) -> ModelSource:
    """A reference, a module or a function that makes one. Raises: UsageError."""
    if isinstance(model, str):
        return ModelSource(model, trust=trust)
    if isinstance(model, nn.Module):
        return ModelSource(maker=Copy(model))
    if callable(model):
        return ModelSource(maker=Factory(model))
    raise UsageError(
        f"a {type(model).__name__} is not a model", next="Give a reference, a module, a function."
    )


def defaults(factory: Any) -> dict[str, Any]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return {}
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def restart(model: nn.Module) -> None:
    """Draw every layer's weights again, as its constructor did."""
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()


@torch.no_grad()
def initialise(model: nn.Module, init: str) -> None:
    """`he`: N(0, 2 / fan_in); `xavier`: uniform, variance 2 / (fan_in + fan_out); biases 0. `default`: as
    made.

    Source: He et al. 2015, section 2.2; Glorot & Bengio 2010, equation 16.
    """
    if init == "default":
        return
    if init not in INITS:
        raise UsageError(f"unknown initialisation {init!r}", next=f"Use {', '.join(INITS)}.")
    for module in model.modules():
        if isinstance(module, WEIGHTED):
            draw(module.weight, init)
            if module.bias is not None:
                module.bias.zero_()


def draw(weight: torch.Tensor, init: str) -> None:
    if init == "he":
        weight.normal_(0.0, math.sqrt(2.0 / weight[0].numel()))
    else:
        nn.init.xavier_uniform_(weight)
