"""Would a layer subclass that has no bias use one?"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import fx, nn

from bntool.graphs.fx_sizes import Inputs
from bntool.graphs.fx_trace import Tracer


def would_use_a_bias(module: nn.Module, call: fx.Node, given: Sequence[Inputs | None]) -> bool:
    """Whether a conv or linear subclass without bias computes with one as soon as it has it.

    Its forward is traced once more on a shallow copy that has a bias: seen instead of believed. For all that
    it is `given` it must have one way only.
    """
    if not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) or module.bias is not None:
        return False
    biased = copy.copy(module)
    biased._parameters = dict(module._parameters)
    biased._parameters["bias"] = nn.Parameter(torch.zeros(module.weight.shape[0], device="meta"))
    return all(_uses_it(module, biased, call, inputs) for inputs in given)


def _uses_it(module: nn.Module, biased: nn.Module, call: fx.Node, inputs: Inputs | None) -> bool:
    tracer, before = (Tracer(lambda m, path: False, [], inputs) for _ in range(2))
    try:
        graph, plain = tracer.run(biased), before.run(module)
    except Exception:
        return False
    again = [n for n in graph.nodes if n.target == call.target]
    biases = [n.args[2] if len(n.args) > 2 else n.kwargs.get("bias") for n in again]
    otherwise = [(n.op, n.target) for n in graph.nodes if n not in biases]
    alike = otherwise == [(n.op, n.target) for n in plain.nodes] and not tracer.forks.decisions
    return alike and len(again) == 1 and isinstance(biases[0], fx.Node) and biases[0].target == "bias"
