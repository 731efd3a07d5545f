"""Weights that are computed before every call: by a parametrization, or by the hook of a weight norm, of a
spectral norm or of pruning.

Such a layer is analysed as what it is without that. Where a fold touches it the computed weight becomes a
plain parameter ("baked") first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

HOOKS = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
Computing = WeightNorm | SpectralNorm | prune.BasePruningMethod
#: what a subclass may say of itself, or do when it is made, while calls stay what they are
SAID = frozenset(vars(type("Sub", (nn.Module,), {}))) | {"__annotations__", "__constants__"}
OF_NO_CALL = SAID | {"__init__", "__repr__", "extra_repr", "reset_parameters"}
LOOK_UPS = ("__getattr__", "__getattribute__")


def own_type(module: nn.Module) -> type[nn.Module]:
    """The module's class, without the one a parametrization has put in its place.

    Of a subclass that changes nothing about calls (it parametrizes itself when it is made) it is torch's.
    """
    if "parametrizations" not in module._modules:  # asking torch takes a failed look-up for every module
        return type(module)
    kind = parametrize.type_before_parametrizations(module)
    base = next(base for base in kind.__mro__ if base.__module__.startswith("torch.nn."))
    added = {name for cls in kind.__mro__[: kind.__mro__.index(base)] for name in vars(cls)} - OF_NO_CALL
    computed = vars(module.parametrizations)["_modules"]
    held = {*module.__dict__, *module._parameters, *module._buffers, *computed}
    return kind if any(hasattr(base, name) or name in held or name in LOOK_UPS for name in added) else base


def has_own_forward(module: nn.Module) -> bool:
    """Whether somebody has given this very module a forward that is not its class's."""
    return "forward" in module.__dict__


def is_torchs_own(module: nn.Module) -> bool:
    """Whether its forward is the one torch has written for its class: nobody has put another there."""
    kind = own_type(module)
    written = getattr(kind.forward, "__globals__", {}).get("__name__")
    return not has_own_forward(module) and written == kind.__module__


def computed_by_hook(module: nn.Module) -> dict[str, Computing]:
    """The tensors that hooks compute, by name."""
    hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, HOOKS)]
    return {_name_of(hook): hook for hook in hooks}


def _name_of(hook: Computing) -> str:
    return str(hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else hook.name)


def is_computed(module: nn.Module, name: str) -> bool:
    """Whether the tensor `name` of a module is computed anew for every call."""
    return name in computed_tensors(module)


def computed_tensors(module: nn.Module) -> list[str]:
    """The names of the tensors that are computed anew for every call of the module itself."""
    names = list(computed_by_hook(module)) if module._forward_pre_hooks else []
    if "parametrizations" in module._modules and parametrize.is_parametrized(module):
        names += map(str, module.parametrizations)  # type: ignore[arg-type]
    return names


def held_tensor(module: nn.Module, name: str) -> object:
    """What a module has under a name. (What a hook computes is there as it was for the last call.)"""
    hook = computed_by_hook(module).get(name) if module._forward_pre_hooks else None
    if hook is None:
        return getattr(module, name, None)
    with torch.no_grad():
        if isinstance(hook, prune.BasePruningMethod):
            return hook.apply_mask(module)
        more = {"do_power_iteration": False} if isinstance(hook, SpectralNorm) else {}
        return hook.compute_weight(module, **more)


def _give_own_class(module: nn.Module) -> None:
    """Copies of a parametrized module share the class made for it, which taking it off would change."""
    shared = type(module)
    inside = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, inside)


def bake(module: nn.Module) -> None:
    """Make every computed tensor of the module a plain parameter of the same value, in place."""
    if parametrize.is_parametrized(module):
        _give_own_class(module)
        for name in list(module.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(module, str(name), leave_parametrized=True)
    for name, hook in computed_by_hook(module).items():
        with torch.no_grad():
            next(remove for kind, remove in REMOVE if isinstance(hook, kind))(module, name)


def _remove_spectral_norm(module: nn.Module, name: str) -> None:
    """(torch leaves the hook that reads a spectral norm's state, and which then misses it.)"""
    remove_spectral_norm(module, name)
    for key, hook in list(module._load_state_dict_pre_hooks.items()):
        own = getattr(hook, "hook", hook)
        if isinstance(own, SpectralNormLoadStateDictPreHook) and own.fn.name == name:
            del module._load_state_dict_pre_hooks[key]


REMOVE: tuple[tuple[type, Callable[[nn.Module, str], Any]], ...] = (
    (WeightNorm, remove_weight_norm),
    (SpectralNorm, _remove_spectral_norm),
    (prune.BasePruningMethod, prune.remove),
)
