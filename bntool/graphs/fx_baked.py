"""Weights that are computed before every call: by a parametrization, or by a weight or spectral norm's hook.

Such a layer is analysed as what it is without that. Where a fold touches it the computed weight becomes a
plain parameter ("baked") first.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

HOOKS = (WeightNorm, SpectralNorm)
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


def computed_by_hook(module: nn.Module) -> list[WeightNorm | SpectralNorm]:
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, HOOKS)]


def is_computed(module: nn.Module, name: str) -> bool:
    """Whether the tensor `name` of a module is computed anew for every call."""
    if "parametrizations" in module._modules and parametrize.is_parametrized(module, name):
        return True
    return bool(module._forward_pre_hooks) and any(h.name == name for h in computed_by_hook(module))


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
    for hook in computed_by_hook(module):
        with torch.no_grad():
            remove = remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm
            remove(module, hook.name)
