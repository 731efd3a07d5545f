"""What else runs than its forward when a module is called: hooks, and a `__call__` of its class's own."""

from __future__ import annotations

from torch import fx, nn
from torch.nn.modules import module as hooked

from bntool.graphs.fx_baked import computed_by_hook
from bntool.graphs.walk import modules_in

#: hooks on all modules of the process
EVERYWHERE = (
    hooked._global_forward_hooks,
    hooked._global_forward_pre_hooks,
    hooked._global_backward_hooks,
    hooked._global_backward_pre_hooks,
)


def has_hooks(m: nn.Module) -> bool:
    """Whether somebody else's code runs when the module is called; a norm of its weight is not that."""
    if any(EVERYWHERE) or m._forward_hooks or m._backward_hooks or m._backward_pre_hooks:
        return True
    return bool(m._forward_pre_hooks) and len(m._forward_pre_hooks) > len(computed_by_hook(m))


def has_own_call(m: nn.Module) -> bool:
    """Whether its class does more than run hooks and `forward` when the module is called."""
    return type(m).__call__ is not nn.Module.__call__ and not isinstance(m, fx.GraphModule)


def hooks_feed_back(root: nn.Module) -> bool:
    """Whether a hook knows a module: what it leaves there the forward may read, and no graph would."""
    modules = [m for _, m in modules_in(root)]
    hooks = [h for m in modules for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    cells = [cell.cell_contents for h in hooks for cell in getattr(h, "__closure__", None) or ()]
    return any(isinstance(v, nn.Module) for v in (*cells, *(getattr(h, "__self__", None) for h in hooks)))
