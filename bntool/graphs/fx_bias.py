"""Would a layer subclass that has no bias use one?"""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from bntool.graphs.fx_trace import Tracer


def would_use_a_bias(module: nn.Module, call: fx.Node) -> bool:
    """Whether a conv or linear subclass without bias computes with one as soon as it has it.

    Its forward is traced once more on a shallow copy that has a bias: seen instead of believed.
    """
    if not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) or module.bias is not None:
        return False
    biased = copy.copy(module)
    biased._parameters = dict(module._parameters)
    biased._parameters["bias"] = nn.Parameter(torch.zeros(module.weight.shape[0], device="meta"))
    try:
        graph = Tracer(lambda m, path: False, [], None).run(biased)
    except Exception:
        return False
    again = [n for n in graph.nodes if n.target == call.target]
    biases = [n.args[2] if len(n.args) > 2 else n.kwargs.get("bias") for n in again]
    return len(again) == 1 and isinstance(biases[0], fx.Node) and biases[0].target == "bias"
