"""A plan carried out on modules: parameters replaced, folded norms become what else they did, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bntool.copying import copied
from bntool.edits import becomes, exchange, left_of, nothing_of
from bntool.graphs.fx_calls import has_own_class, place_of
from bntool.graphs.fx_pinned import AFTERWARDS
from bntool.graphs.fx_sizes import attribute
from bntool.graphs.walk import modules_in
from bntool.plan import Plan
from bntool.rewriting import OutOfRange, Rewrite, fitting, rewrites
from bntool.room import Room
from bntool.tensors import Arithmetic


class Modules:
    """A model's modules by their names. (Asking torch for one walks down to it.)"""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.named = model, dict(modules_in(model))

    def __call__(self, path: str) -> nn.Module:
        found = self.named.get(path)
        return self.model.get_submodule(path) if found is None else found  # another name of one of them


class Held:
    """What a model holds, found in one pass over it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.module = Modules(model)
        self.named: dict[str, torch.Tensor] = {}
        self._at: dict[int, list[torch.Tensor]] = {}
        """Tensors by where they begin: several parameters may be one."""
        self._without_bias: dict[int, list[tuple[str, torch.Tensor]]] = {}
        """Layers that could have a bias and have none, with their weights, by where those begin."""
        for path, module in self.module.named.items():
            self._note(f"{path}." if path else "", module)

    def _note(self, prefix: str, module: nn.Module) -> None:
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                self.named[prefix + name] = tensor
                self._at.setdefault(_address(tensor), []).append(tensor)
        weight = module._parameters.get("weight")
        if weight is not None and module._parameters.get("bias", weight) is None:
            self._without_bias.setdefault(_address(weight), []).append((prefix[:-1], weight))

    def tensor(self, name: str) -> torch.Tensor:
        found = self.named.get(name)
        return attribute(self.model, name) if found is None else found

    def present(self, todo: Sequence[Rewrite]) -> list[tuple[Rewrite, torch.Tensor]]:
        """The rewrites of tensors that are there, each with its own."""
        return [(r, self.tensor(r.param.name)) for r in todo if r.param is not None]

    def same(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """All that are this one: the same part of the same memory."""
        return _twins(tensor, self._at.get(_address(tensor), [tensor]))

    def without_bias(self, weight: torch.Tensor) -> list[str]:
        """Layers with this weight that could have a bias and have none."""
        layers = self._without_bias.get(_address(weight), [])
        twins = {id(twin) for twin in _twins(weight, [w for _, w in layers])}
        return [path for path, w in layers if id(w) in twins]


def _twins(tensor: torch.Tensor, others: list[torch.Tensor]) -> list[torch.Tensor]:
    """Which of some tensors that begin where this one does are this one."""
    if len(others) == 1 and others[0] is tensor:
        return others
    return [other for other in others if place_of(other) == place_of(tensor)]


def _address(tensor: torch.Tensor) -> int:
    known = tensor.layout == torch.strided and not has_own_class(tensor)
    return tensor.data_ptr() if known else id(tensor)


@dataclass(frozen=True)
class NewBias:
    """A bias for layers that had none; it needs a gradient if their weight does."""

    paths: list[str]
    parameter: nn.Parameter


def folded_copy(model: nn.Module, plan: Plan, room: Room) -> nn.Module:
    """A copy of the model with the plan carried out; what is replaced is never copied.

    Raises: OutOfRange when a new value does not fit its dtype.
    """
    held, arithmetic, todo = Held(model), Arithmetic(room), rewrites(plan.changes.values())
    biases = [_new_bias(held, r, arithmetic) for r in todo if r.param is None]
    present = held.present(todo)
    made = zip(present, arithmetic.all_rewritten(present), strict=True)
    news = [(old, fitting(rewrite, new)) for (rewrite, old), new in made]
    memo: dict[int, Any] = {id(twin): put(twin, new) for old, new in news for twin in held.same(old)}
    memo = {**room.copies(), **memo}
    for path in norm_paths(plan):
        module = held.module(path)
        if not afterwards(module):
            memo[id(module)] = nothing_of(module)
    result = copied(model, memo)
    _finish(result, plan, biases)
    return result


def fold_here(model: nn.Module, plan: Plan) -> None:
    """The plan carried out on the model itself.

    Raises: OutOfRange when a new value does not fit its dtype; nothing has changed then.
    """
    held, arithmetic, todo = Held(model), Arithmetic(), rewrites(plan.changes.values())
    present = held.present(todo)
    for rewrite, old in present:
        refusal = arithmetic.out_of_range(rewrite, old)
        if refusal is not None:
            raise OutOfRange(rewrite, refusal.reason)
    biases = [_new_bias(held, r, arithmetic) for r in todo if r.param is None]
    norms = [m for m in map(held.module, norm_paths(plan)) if not afterwards(m)]
    for rewrite, old in present:
        arithmetic.overwrite(rewrite, old)
    for norm in norms:
        becomes(norm, nothing_of(norm))
    _finish(model, plan, biases)


def _finish(model: nn.Module, plan: Plan, biases: Sequence[NewBias]) -> None:
    module = Modules(model)
    for bias in biases:
        for path in bias.paths:
            module(path).register_parameter("bias", bias.parameter)
    norms = [module(path) for path in norm_paths(plan)]
    exchange(model, {id(m): left_of(m, afterwards(m)) for m in norms if not isinstance(m, nn.Identity)})


def _new_bias(held: Held, rewrite: Rewrite, arithmetic: Arithmetic) -> NewBias:
    node = rewrite.node
    weight = held.named.get(node.params["weight"].name)
    if weight is None:  # the layer's own forward computes it from the one it holds
        weight = held.tensor(f"{node.where}.weight")
    new = fitting(rewrite, arithmetic.made(rewrite, weight))
    bias = nn.Parameter(new, requires_grad=weight.requires_grad)
    return NewBias(held.without_bias(weight) or [node.where], bias)


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
