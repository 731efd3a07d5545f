"""The arms of a study: the user's model with one kind of norm or another, made by our own insert and replace.

`none` is the plain model (its own batch, group or instance norms taken out), `batch` has batch norms, and so
on. `control` arms are the plain model once more under another name: whatever a study finds between them is an
error of the study.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bntool.errors import UsageError

PLAIN = "none"
NORMS = ("none", "batch", "group", "layer", "instance", "renorm", "ghost", "rms")
OWN_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
#: norms that a model may bring along and that are taken out of it, by the arm that they are
OWN_NORMS: dict[str, tuple[type[nn.Module], ...]] = {
    "batch": OWN_BATCH_NORMS,
    "group": (nn.GroupNorm,),
    "instance": (nn.modules.instancenorm._InstanceNorm,),
}
ANY_NORM = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
#: examples that share statistics in ghost batch norm
GHOST_SIZE = 8


def check_norms(norms: Sequence[str]) -> tuple[str, ...]:
    """Raises: UsageError when a name is unknown or twice there, or fewer than two are given."""
    unknown = [n for n in norms if n not in NORMS and not is_control(n)]
    if unknown:
        raise UsageError(f"unknown norm {unknown[0]!r}", where="--norms", next=f"Use {', '.join(NORMS)}.")
    if len(norms) < 2 or len(set(norms)) < len(norms):
        raise UsageError("a study compares at least two different arms", where="--norms", next="none,batch")
    return tuple(norms)


def is_control(norm: str) -> bool:
    return norm.startswith("control")


def own_norm(model: nn.Module) -> str:
    """The arm that the model is as it was given; "none" without norms of its own."""
    return next((norm for norm, kinds in OWN_NORMS.items() if has_any(model, kinds)), PLAIN)


def has_any(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    return any(isinstance(m, kinds) for m in model.modules())


def make_arm(
    model: nn.Module, norm: str, example_inputs: tuple[Tensor, ...], dropout: float = 0.0
) -> nn.Module:
    """The model with `norm`, freshly started, and dropout ahead of its linears; weights are the model's
    own.
    """
    made = with_norm(model, norm, example_inputs)
    return with_dropout(made, example_inputs, dropout) if dropout else made


def with_norm(model: nn.Module, norm: str, example_inputs: tuple[Tensor, ...]) -> nn.Module:
    own = own_norm(model)
    if own == norm:
        return model
    if own == "batch":
        return exchanged(model, norm)
    take_out(model, OWN_NORMS.get(own, ()))
    if norm == PLAIN or is_control(norm):
        return model
    return inserted(model, norm, example_inputs)


def exchanged(model: nn.Module, norm: str) -> nn.Module:
    """The model with its own batch norms replaced or taken out."""
    from bntool.replace import replace

    plain = norm == PLAIN or is_control(norm)
    return replace(model, to="none" if plain else norm).model


def take_out(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, kinds):
            place, _, child = name.rpartition(".")
            setattr(model.get_submodule(place), child, nn.Identity())


def inserted(model: nn.Module, norm: str, example_inputs: tuple[Tensor, ...]) -> nn.Module:
    """The model with norms where insert puts them, at their usual start."""
    from bntool.insert import insert

    done = insert(model, example_inputs, norm=norm, init="fresh", virtual_batch_size=GHOST_SIZE)
    made: nn.Module = done.model
    return made


class InputDropout:
    """Drops values of a layer's input while it trains: a forward hook, so that no name in the model
    changes.
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        dropped = nn.functional.dropout(inputs[0], self.probability, layer.training)
        return (dropped, *inputs[1:])


def with_dropout(model: nn.Module, example_inputs: tuple[Tensor, ...], probability: float) -> nn.Module:
    """Dropout on the input of every linear layer but one that reads the data; of the last layer without
    such.
    """
    layers = weight_layers(model, example_inputs)
    chosen = [layer for layer in layers[1:] if isinstance(layer, nn.Linear)] or layers[1:][-1:]
    for layer in chosen:
        layer.register_forward_pre_hook(InputDropout(probability))
    return model


def weight_layers(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> list[nn.Module]:
    """Convolutions and linears in the order in which they first run."""
    order: list[nn.Module] = []

    def seen(layer: nn.Module, *_: Any) -> None:
        if layer not in order:
            order.append(layer)

    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    hooks = [m.register_forward_pre_hook(seen) for m in model.modules() if isinstance(m, kinds)]
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(*example_inputs)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return order
