"""What fold did to a module's structure, read off by comparing before and after, and recorded as edits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from bntool.edits import record
from bntool.graphs.fx_baked import computed_tensors
from bntool.graphs.walk import modules_in
from bntool.norms.stand_in import StandIn


@dataclass
class Part:
    """One module: its class, those of its children, whether it has a bias, which tensors are computed."""

    kind: type[nn.Module]
    children: dict[str, type[nn.Module]]
    has_bias: bool
    computed: tuple[str, ...]


Structure = dict[str, Part]


def structure_of(model: nn.Module) -> Structure:
    """Every module of `model` by its first name."""
    return {path: part_of(module) for path, module in modules_in(model)}


def part_of(module: nn.Module) -> Part:
    children = {name: _class(child) for name, child in module.named_children()} if module._modules else {}
    names = () if isinstance(module, StandIn) else tuple(computed_tensors(module))  # it shows its layer's
    bias = module._parameters["bias"] if "bias" in module._parameters else getattr(module, "bias", None)
    return Part(_class(module), children, bias is not None, names)


def _class(module: nn.Module) -> type[nn.Module]:
    """The module's class. (torch.fx makes one for every graph module, and another for its copy.)"""
    return fx.GraphModule if isinstance(module, fx.GraphModule) else type(module)


def record_changes(before: Structure, after: nn.Module) -> None:
    """Record on `after` the edits that make its structure of a module built as `before`."""
    record(after, *list(changes(before, after)))


def changes(before: Structure, after: nn.Module) -> Iterator[dict[str, Any]]:
    """The edits, in the order in which they have to be applied."""
    gone: set[str] = set()
    modules = dict(modules_in(after, every_name=True))
    for path, old in before.items():
        if gone and any(above in gone for above in _upwards(path)):
            continue
        new = modules[path]
        if old.computed and not computed_tensors(new):
            gone.add(f"{path}.parametrizations" if path else "parametrizations")
            yield {"op": "bake", "path": path}
        elif _class(new) is not old.kind:
            if old.children:
                gone.add(path)
            yield {"op": "drop_norm", "path": path, "keeps": kept_children(old, new)}
            continue
        if issubclass(old.kind, StandIn):  # it shows its layer's bias as its own
            continue
        if path and not old.has_bias and (bias := getattr(new, "bias", None)) is not None:
            yield {"op": "add_bias", "path": path, "size": len(bias)}


def _upwards(path: str) -> Iterator[str]:
    """The path and those of all that hold it: a.b.c, a.b, a."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def kept_children(old: Part, new: nn.Module) -> list[str]:
    """Which children of a norm are what stands in its place: its dropout, its activation."""
    if type(new) is nn.Identity:
        return []
    left = [type(m) for m in new] if type(new) is nn.Sequential else [type(new)]
    return [name for name, kind in old.children.items() if kind in left and kind is not nn.Identity]
