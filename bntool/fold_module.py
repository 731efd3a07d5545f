"""A plan carried out on modules: parameters replaced, folded norms become what else they did, or nothing."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bntool.algebra.affine import Blocked
from bntool.copying import copied
from bntool.graphs.fx_calls import owner_part
from bntool.graphs.fx_sizes import attribute
from bntool.graphs.fx_translate import AFTERWARDS
from bntool.plan import Plan
from bntool.rewriting import OutOfRange, Rewrite, rewrites
from bntool.tensors import out_of_range, overwrite, rewritten


@dataclass(frozen=True)
class Tensors:
    """What a plan makes of a model's tensors."""

    changed: list[tuple[torch.Tensor, torch.Tensor]]
    """(old, new), every name of a shared tensor once"""
    biases: list[NewBias]


@dataclass(frozen=True)
class NewBias:
    """A bias for a layer that had none; it needs a gradient if its weight does."""

    rewrite: Rewrite
    paths: list[str]
    parameter: nn.Parameter


def folded_copy(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the model with the plan carried out; what is replaced is never copied.

    Raises: OutOfRange when a new value does not fit its dtype.
    """
    tensors = new_tensors(model, plan)
    memo: dict[int, Any] = {id(old): put(old, new) for old, new in tensors.changed}
    for path in norm_paths(plan):
        module = model.get_submodule(path)
        if not afterwards(module):
            memo[id(module)] = nn.Identity().train(module.training)
    result = copied(model, memo)
    _finish(result, plan, tensors.biases)
    return result


def fold_here(model: nn.Module, plan: Plan) -> None:
    """The plan carried out on the model itself.

    Raises: OutOfRange when a new value does not fit its dtype; nothing has changed then.
    """
    todo = rewrites(plan.changes.values())
    present = [(r, attribute(model, r.param.name)) for r in todo if r.param is not None]
    for rewrite, old in present:
        refusal = out_of_range(rewrite, old)
        if refusal is not None:
            raise OutOfRange(rewrite.node.owner, refusal.reason)
    biases = [_new_bias(model, r) for r in todo if r.param is None]
    for rewrite, old in present:
        overwrite(rewrite, old)
    _finish(model, plan, biases)


def _finish(model: nn.Module, plan: Plan, biases: Sequence[NewBias]) -> None:
    for bias in biases:
        for path in bias.paths:
            model.get_submodule(path).register_parameter("bias", bias.parameter)
    for path in norm_paths(plan):
        module = model.get_submodule(path)
        if not isinstance(module, nn.Identity):
            replace(model, path, _without_norm(module))


def new_tensors(model: nn.Module, plan: Plan) -> Tensors:
    """Compute everything that changes; the model stays as it is."""
    named = _by_place(model)
    result = Tensors([], [])
    for rewrite in rewrites(plan.changes.values()):
        if rewrite.param is None:
            result.biases.append(_new_bias(model, rewrite))
            continue
        old = attribute(model, rewrite.param.name)
        new = _checked(rewrite, old)
        result.changed.extend((twin, new) for twin in named.get(owner_part(old), [old]))
    return result


def _by_place(model: nn.Module) -> dict[Hashable, list[torch.Tensor]]:
    """Tensors by the memory they use: several parameters may be one."""
    result: dict[Hashable, list[torch.Tensor]] = {}
    for _, tensor in (*model.named_parameters(), *model.named_buffers()):
        result.setdefault(owner_part(tensor), []).append(tensor)
    return result


def _checked(rewrite: Rewrite, old: torch.Tensor) -> torch.Tensor:
    tensor = rewritten(rewrite, old)
    if isinstance(tensor, Blocked):
        raise OutOfRange(rewrite.node.owner, tensor.reason)
    return tensor


def _new_bias(model: nn.Module, rewrite: Rewrite) -> NewBias:
    weight = attribute(model, rewrite.node.params["weight"].name)
    assert rewrite.value is not None
    new = _checked(rewrite, weight.detach().new_empty(rewrite.value.shape))
    shares = [path for path, m in model.named_modules() if m._parameters.get("weight") is weight]
    return NewBias(rewrite, shares, nn.Parameter(new, requires_grad=weight.requires_grad))


def put(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    if not isinstance(old, nn.Parameter):
        return new
    parameter = nn.Parameter(new, requires_grad=old.requires_grad)
    parameter.__dict__.update(old.__dict__)
    return parameter


def norm_paths(plan: Plan) -> list[str]:
    """Where the folded norms are, every name of a shared one."""
    return list(dict.fromkeys(name for step in plan.steps for name in step.norm.names))


def afterwards(module: nn.Module) -> list[nn.Module]:
    """What a norm subclass does after normalising: dropout, activation."""
    if type(module).__module__.startswith("torch.nn"):
        return []
    parts = [getattr(module, name, None) for name in AFTERWARDS]
    return [p for p in parts if isinstance(p, nn.Module) and type(p) is not nn.Identity]


def _without_norm(module: nn.Module) -> nn.Module:
    parts = afterwards(module)
    left = nn.Identity() if not parts else parts[0] if len(parts) == 1 else nn.Sequential(*parts)
    return left.train(module.training) if not parts else left


def replace(model: nn.Module, path: str, new: nn.Module) -> None:
    """Put `new` at `path`, and at every other name under which the same module is registered."""
    old = model.get_submodule(path)
    for parent in model.modules():
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new
