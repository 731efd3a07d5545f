"""An independent judge of "nothing foldable is left": brute force, no graph, no algebra over graphs.

For a norm that is left it tries every layer, and every two layers, as the place for the norm's map, puts
the identity in the norm's place and looks whether the network still computes the same under redrawn weights.
What passes all redraws is no coincidence.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import permutations

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tests.random_norms import has_statistics

Absorb = Callable[[nn.Module, Tensor, Tensor], bool]
#: how large the input is at each redraw: an activation that a small one never switches passes anything
SIZES = (2.0, 2.0, 100.0)
#: (a layer norm takes a scale away too, but for its eps: that is no rounding, however large its input)
TOLERANCE = 1e-12


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(model(x.clone())) if isinstance(leaf, Tensor)]


def same(a: list[Tensor], b: list[Tensor], tolerance: float = TOLERANCE) -> bool:
    return all(
        p.shape == q.shape and bool((p - q).abs().max() <= tolerance * (1 + q.abs().max()))
        for p, q in zip(a, b, strict=True)
    )


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The norm's scale and shift per channel."""
    mean, var, eps = norm.running_mean, norm.running_var, norm.eps
    scale = torch.rsqrt(var + eps)  # type: ignore[operator]
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = -mean * scale  # type: ignore[operator]
    return scale, shift if norm.bias is None else shift + norm.bias.detach()


def transposed(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.conv._ConvTransposeNd)


def outs(layer: nn.Module) -> int:
    return getattr(layer, "out_channels", 0) or getattr(layer, "out_features", 0)


def ins(layer: nn.Module) -> int:
    return getattr(layer, "in_channels", 0) or getattr(layer, "in_features", 0)


def after(layer: nn.Module, scale: Tensor, shift: Tensor) -> bool:
    """`layer <- scale * layer(x) + shift`, if the channels agree."""
    if outs(layer) != len(scale):
        return False
    weight = layer.weight.detach()
    tail = (1,) * (weight.ndim - 2)
    if transposed(layer):
        grouped = weight.unflatten(0, (layer.groups, -1)) * scale.view(layer.groups, 1, -1, *tail)
        new = grouped.flatten(0, 1)
    else:
        new = weight * scale.view(-1, 1, *tail)
    bias = shift if layer.bias is None else scale * layer.bias.detach() + shift
    layer.weight, layer.bias = nn.Parameter(new), nn.Parameter(bias)
    return True


def before(layer: nn.Module, scale: Tensor, shift: Tensor) -> bool:
    """`layer <- layer(scale * x + shift)` for ungrouped layers; features may repeat a channel (flatten)."""
    weight = layer.weight.detach()
    if getattr(layer, "groups", 1) != 1 or ins(layer) % len(scale):
        return False
    repeat = ins(layer) // len(scale)
    scale, shift = scale.repeat_interleave(repeat), shift.repeat_interleave(repeat)
    tail = (1,) * (weight.ndim - 2)
    axis = (-1, 1) if transposed(layer) else (1, -1)
    if transposed(layer) and shift.abs().max() > 0:
        return False
    moved = (weight * shift.view(*axis, *tail)).flatten(2).sum(2) if tail else weight * shift
    total = moved.sum(1) if not transposed(layer) else torch.zeros(outs(layer), dtype=weight.dtype)
    bias = total if layer.bias is None else layer.bias.detach() + total
    layer.weight, layer.bias = nn.Parameter(weight * scale.view(*axis, *tail)), nn.Parameter(bias)
    return True


def one(absorb: Absorb) -> Callable[[list[nn.Module], Tensor, Tensor], bool]:
    return lambda layers, scale, shift: absorb(layers[0], scale, shift)


def both(layers: list[nn.Module], scale: Tensor, shift: Tensor) -> bool:
    """norm -> two readers"""
    return before(layers[0], scale, shift) and before(layers[1], scale, shift)


def summed(layers: list[nn.Module], scale: Tensor, shift: Tensor) -> bool:
    """(a + b) -> norm"""
    return after(layers[0], scale, shift) and after(layers[1], scale, torch.zeros_like(shift))


def concatenated(layers: list[nn.Module], scale: Tensor, shift: Tensor) -> bool:
    """cat(a, b) -> norm"""
    cut = outs(layers[0])
    return after(layers[0], scale[:cut], shift[:cut]) and after(layers[1], scale[cut:], shift[cut:])


ATTEMPTS = ((1, one(after)), (1, one(before)), (2, both), (2, summed), (2, concatenated))


def redraw(model: nn.Module, x: Tensor, seed: int, size: float) -> Tensor:
    """New magnitudes, same signs, for all of the model's numbers: agreement is structure. A new input.

    (Scales that are zero throughout become others: behind a norm that erases its data anything agrees. Shifts
    get other signs: where all are positive, by chance, a ReLU between two others does nothing.)
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                tensor.add_(not tensor.any())
                tensor.mul_(0.5 + 1.5 * torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
                if name.endswith(("bias", "mean")):
                    tensor.mul_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype).sign())
    return torch.randn(x.shape, generator=generator, dtype=x.dtype) * size


def hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def owned(model: nn.Module, module: nn.Module) -> bool:
    """Nobody else holds this layer's parameters."""
    holders = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    return all(holders[id(p)] == 1 for p in module._parameters.values() if p is not None)


def read_elsewhere(model: nn.Module) -> set[str]:
    """Layers whose weight some step reads by itself."""
    return {
        f"{prefix}{'.' if prefix else ''}{step.args['name']}"
        for prefix, module in model.named_modules()
        for step in getattr(module, "steps", ())
        if step.op == "weight_read"
    }


def norms_left(model: nn.Module) -> list[str]:
    return [
        name
        for name, m in model.named_modules()
        if has_statistics(m) and not m.training and not hooked(m) and owned(model, m)
    ]


def absorbers(model: nn.Module) -> list[str]:
    """Linear layers that a fold may change: their own weights, seen by nobody else, no hooks."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    read = read_elsewhere(model)
    return [
        name
        for name, m in model.named_modules()
        if isinstance(m, kinds)
        and not hasattr(m, "parametrizations")
        and not hooked(m)
        and owned(model, m)
        and name not in read
    ]


def without(model: nn.Module, name: str) -> nn.Module:
    model = copy.deepcopy(model)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return model


def works(
    model: nn.Module, x: Tensor, norm: str, layers: tuple[str, ...], attempt: Callable[..., bool]
) -> bool:
    for seed, size in enumerate(SIZES):
        drawn = copy.deepcopy(model)
        inputs = redraw(drawn, x, seed, size)
        trial = without(drawn, norm)
        if same(outputs(trial, inputs), outputs(drawn, inputs)):
            return False  # the norm does nothing here, so its absence proves nothing
        if not attempt([trial.get_submodule(n) for n in layers], *affine(drawn.get_submodule(norm))):
            return False
        if not same(outputs(trial, inputs), outputs(drawn, inputs)):
            return False
    return True


def foldable_left(model: nn.Module, x: Tensor) -> Iterator[str]:
    """A sentence for every norm of `model` that brute force can fold."""
    layers = absorbers(model)
    for norm in norms_left(model):
        for size, attempt in ATTEMPTS:
            for places in permutations(layers, size):
                if works(model, x, norm, places, attempt):
                    yield f"{norm} is left but folds into {' and '.join(places)}"
                    break
