"""How far rounding alone moves a model's outputs, measured instead of estimated.

A deep network can amplify a last bit thousandfold. Folding rounds every weight once; so does moving every
weight by its last bit, and what that does to the outputs is evidence of what a right fold may do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bntool.report.agreement import compare

if TYPE_CHECKING:
    from torch import nn

    from bntool.sources.running import Outputs, Runnable

#: a fold rounds in several places where the measurement rounds in one
MARGIN = 10.0
#: outputs that last bits move further than this, relative to the largest value, tell nothing
HOPELESS = 0.01
DRAWS = 3


def repeats(model: nn.Module, inputs: Any, reference: Outputs, tolerance: float) -> bool:
    """Whether the model itself gives the reference again: else it draws random numbers, or remembers."""
    from bntool.sources.running import runnable

    return _moved(runnable(model), inputs, reference) <= tolerance


def rounding_noise(model: nn.Module, inputs: Any, reference: Outputs) -> float:
    """The largest difference, relative to an output's largest value, over some draws of last bits."""
    from bntool.sources.running import runnable

    return max(_moved(runnable(perturbed(model, seed)), inputs, reference) for seed in range(DRAWS))


def perturbed(model: nn.Module, seed: int) -> nn.Module:
    """A copy with every weight moved by up to one unit of its last place."""
    import torch

    from bntool.copying import copied

    model = copied(model, {})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.is_floating_point():
                bits = torch.randint(-1, 2, tensor.shape, generator=generator).to(tensor)
                tensor.mul_(1 + bits * torch.finfo(tensor.dtype).eps)
    return model


def _moved(model: Runnable, inputs: Any, reference: Outputs) -> float:
    pairs: Sequence[tuple[tuple[str, Any], tuple[str, Any]]] = list(
        zip(reference, model(inputs), strict=True)
    )
    return max((compare(name, x, y).max_rel for (name, x), (_, y) in pairs), default=0.0)
