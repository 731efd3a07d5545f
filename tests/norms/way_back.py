"""How near inserting and folding again come to the weights there were."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

TINY = 1e-30


def with_weights(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that hold parameters of their own, in order: inserting and folding keep it."""
    return (m for m in model.modules() if next(m.parameters(recurse=False), None) is not None)


def weights_off(original: nn.Module, back: nn.Module) -> float:
    """The largest difference of any tensor to the original one, over the layer's largest value, 1 at least
    for biases: what a norm adds to a bias and takes away again rounds like the layer's outputs.

    A bias that folding left behind is compared with none: zero.
    """
    pairs = zip(with_weights(original), with_weights(back), strict=True)
    return max(off for a, b in pairs for off in _offs(a, b))


def _offs(original: nn.Module, back: nn.Module) -> Iterator[float]:
    old = dict(original.named_parameters(recurse=False))
    new = dict(back.named_parameters(recurse=False))
    assert old.keys() <= new.keys() <= old.keys() | {"bias"}, (old.keys(), new.keys())
    for name, value in new.items():
        yield _off(old.get(name), value, at_least=1.0 if name == "bias" else TINY)


def _off(old: Tensor | None, new: Tensor, at_least: float) -> float:
    if old is None:
        return float(new.detach().abs().max()) / at_least
    difference = (new.detach().double() - old.detach().double()).abs().max()
    return float(difference) / max(float(old.detach().abs().max()), at_least)
