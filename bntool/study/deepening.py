"""Make a network deeper where its factory has no argument for it: more layers of the same width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bntool.study.arms import weight_layers

#: the varied "argument" that stands for layers added here
EXTRA = "extra layers"
ACTIVATIONS = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.ELU, nn.Hardswish)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def deepen(model: nn.Module, count: int, example_inputs: tuple[Tensor, ...]) -> nn.Module:
    """Behind every hidden convolution or linear, `count` times an activation and a layer of the same width.

    Convolutions are 3 wide and keep the map's size. The network's own activation follows the last one.
    """
    names = {module: name for name, module in model.named_modules()}
    for layer in hidden_layers(model, example_inputs) if count else ():
        place, _, name = names[layer].rpartition(".")
        added = [m for _ in range(count) for m in (activation(model), same_width(layer))]
        setattr(model.get_submodule(place), name, nn.Sequential(layer, *added))
    return model


def hidden_layers(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> list[nn.Module]:
    """Layers with weights, without the one that runs last, that can be repeated."""
    layers = weight_layers(model, example_inputs)[:-1]
    return [m for m in layers if isinstance(m, (nn.Linear, *CONVS))]


def same_width(layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.out_features, layer.out_features)
    assert isinstance(layer, CONVS)
    return type(layer)(layer.out_channels, layer.out_channels, 3, padding=1)


def activation(model: nn.Module) -> nn.Module:
    """One like the network's first; ReLU where it calls functions."""
    found = next((m for m in model.modules() if isinstance(m, ACTIVATIONS)), nn.ReLU())
    return type(found)()


def can_deepen(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> bool:
    """Whether there is a hidden layer to repeat, and the deeper network still runs."""
    if not hidden_layers(model, example_inputs):
        return False
    try:
        with torch.no_grad():
            deepen(model, 1, example_inputs).eval()(*example_inputs)
    except RuntimeError:
        return False
    return True
