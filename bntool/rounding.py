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
#: rounding steps by which outputs may move where one step alone is large
STEPS = 4
DRAWS = 3


def repeats(model: nn.Module, inputs: Any, reference: Outputs, tolerance: float) -> bool:
    """Whether the model itself gives the reference again: else it draws random numbers, or remembers."""
    from bntool.sources.running import runnable

    return _moved(runnable(model), inputs, reference) <= tolerance


def rounding_noise(model: nn.Module, inputs: Any, reference: Outputs, step: float = 0.0) -> float:
    """The largest difference, relative to an output's largest value, over some draws of last bits.

    `step`: of what rounds more than the weights do, if anything does.
    """
    from bntool.sources.running import runnable

    return max(_moved(runnable(perturbed(model, seed, step)), inputs, reference) for seed in range(DRAWS))


def explained(noise: float, step: float) -> float:
    """How far outputs may be apart where rounding moves them by `noise`; 0 where that tells nothing.

    Never so far that a wrong fold of a few per cent would pass. Autocast rounds much at every step, so that a
    few steps are no sign of a model that amplifies them.
    """
    if noise <= HOPELESS:
        return min(MARGIN * noise, 2 * HOPELESS)
    return noise if noise <= STEPS * step else 0.0


def coarsest_step(model: nn.Module, inputs: Any) -> float:
    """The rounding step of the coarsest float type among all that a run computes: autocast does not show
    in the model's parameters.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    from bntool.sources.running import runnable

    steps = [0.0]

    class Seen(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype.is_floating_point:
                steps.append(torch.finfo(result.dtype).eps)
            return result

    with Seen():
        runnable(model)(inputs)
    return max(steps)


def perturbed(model: nn.Module, seed: int, least: float = 0.0) -> nn.Module:
    """A copy with every weight moved by up to one unit of its last place, or by `least` if that is more."""
    import torch

    from bntool.copying import copied

    model = copied(model, {})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.is_floating_point():
                bits = torch.randint(-1, 2, tensor.shape, generator=generator).to(tensor)
                tensor.mul_(1 + bits * max(least, torch.finfo(tensor.dtype).eps))
    return model


def _moved(model: Runnable, inputs: Any, reference: Outputs) -> float:
    pairs: Sequence[tuple[tuple[str, Any], tuple[str, Any]]] = list(
        zip(reference, model(inputs), strict=True)
    )
    return max((compare(name, x, y).max_rel for (name, x), (_, y) in pairs), default=0.0)
