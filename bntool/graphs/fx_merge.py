"""Merges -> a torch.fx graph: each becomes one layer, and what it makes superfluous goes."""

from __future__ import annotations

import operator
from collections.abc import Container, Sequence, Set
from typing import Any

import torch
from torch import fx, nn

from bntool.algebra.kernels import Kernel
from bntool.graphs.base import Mergeable, Node
from bntool.graphs.fx_calls import SIZE_ATTRIBUTES, SIZE_METHODS, changes_in_place, function_name
from bntool.graphs.fx_sizes import attribute
from bntool.graphs.merged import merged_name, sample

#: what assertions on sizes are made of
SIZE_FUNCTIONS = (
    getattr,
    len,
    *(getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge", "getitem")),
)
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
CONVS: tuple[Any, ...] = (None, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def apply_merges(module: fx.GraphModule, merges: Sequence[Mergeable]) -> list[str]:
    """Rewrites `module`, whose graph the merges were found in; each new layer's name, or "" where none."""
    names = [_apply(module, merge) if replaceable(merge, within=_alike(merge)) else "" for merge in merges]
    _drop_assertions(module.graph, {n.origin for merge in merges for n in merge.inside})
    drop_dead_code(module)
    return names


def drop_dead_code(module: fx.GraphModule) -> None:
    """Takes out what nobody reads, but for what writes in place."""
    module.graph.eliminate_dead_code(_matters)
    module.delete_all_unused_submodules()
    module.recompile()


def replaceable(merge: Mergeable, within: Container[fx.Node] = ()) -> bool:
    """Whether nobody misses what a merge takes away.

    An in-place sum also changes its first operand, which then nobody else may read; and a value whose sizes
    are asked for would have to stay, if it is not `within` those that the merged value is as large as.
    """
    node = merge.at.origin
    if not isinstance(node, fx.Node) or not isinstance(merge.base.origin, fx.Node):
        return False
    target = node.args[0] if node.args else None
    misses = changes_in_place(node) and not (isinstance(target, fx.Node) and set(target.users) == {node})
    return not misses and all(n in within and _asks_sizes(reader) for n, reader in _measured(merge))


def _measured(merge: Mergeable) -> list[tuple[fx.Node, fx.Node]]:
    """The values inside, but for the last, that others need, as for their sizes; each with its reader."""
    inside = {n.origin for n in merge.inside}
    return [(n, u) for n in inside - {merge.at.origin} for u in n.users if is_needed(u, inside)]


def _asks_sizes(reader: fx.Node) -> bool:
    name = function_name(reader)
    if name == "getattr":
        return reader.args[1] in SIZE_ATTRIBUTES
    return reader.op == "call_method" and name in SIZE_METHODS


def is_needed(node: fx.Node, inside: Set[fx.Node]) -> bool:
    """Whether more than assertions, and what is `inside`, comes of a value."""
    todo, seen = [node], {node}
    while todo:
        reader = todo.pop()
        if reader in inside or "_assert" in str(reader.target):
            continue
        if reader.op == "output" or _matters(reader):
            return True
        todo += [user for user in reader.users if user not in seen]
        seen.update(reader.users)
    return False


def _alike(merge: Mergeable) -> set[fx.Node]:
    """The values inside that have the sizes of the merged one, whatever those are."""
    alike = {merge.at}
    for node in reversed(merge.inside):
        if node in alike and _keeps_sizes(node):
            alike |= set(node.inputs) & set(merge.inside)
    return {node.origin for node in alike}


def _keeps_sizes(node: Node) -> bool:
    """Whether a linear op's value is as large as what it reads, whatever that is."""
    a, taps = node.attrs, node.attrs.get("kernel_size", ())
    if node.kind in ("conv", "linear"):
        outs, ins, *taps = node.params["weight"].shape
        if outs != ins * a.get("groups", 1):
            return False
    sizes = (taps, a.get("stride", ()), a.get("padding", ()), a.get("dilation", (1,) * len(taps)))
    window = zip(*sizes, strict=True)
    return node.kind != "pad" and all(s == 1 and 2 * p == d * (n - 1) for n, s, p, d in window)


def _apply(module: fx.GraphModule, merge: Mergeable) -> str:
    old: fx.Node = merge.at.origin
    name = merged_name(merge, {name for name, _ in module.named_modules()})
    module.add_submodule(name, layer(merge.kernel, _sample(module, merge)))
    measured, inside = _measured(merge), {n.origin for n in merge.inside}
    first = next(node for node in module.graph.nodes if node in inside)
    with module.graph.inserting_before(first) if measured else module.graph.inserting_after(old):
        new = module.graph.call_module(name, (merge.base.origin,))
    new.meta = dict(old.meta)
    old.replace_all_uses_with(new)
    for value, reader in measured:
        reader.replace_input_with(value, new)
    for node in reversed([n.origin for n in merge.inside]):
        if not node.users:
            module.graph.erase_node(node)
    return name


def _matters(node: fx.Node) -> bool:
    """Whether a node does something even if nobody reads its value."""
    return node.is_impure() or changes_in_place(node)


def _drop_assertions(graph: fx.Graph, gone: set[fx.Node]) -> None:
    """Assertions on the sizes of values that nobody computes any more would keep those values alive."""
    about = set(gone)
    for node in graph.nodes:
        if node.target is not torch._assert and any(n in about for n in node.all_input_nodes):
            about |= {node} if node.op == "call_function" and node.target in SIZE_FUNCTIONS else set()
    for node in list(graph.nodes):
        if node.target is torch._assert and any(n in about for n in node.all_input_nodes):
            graph.erase_node(node)


def _sample(module: fx.GraphModule, merge: Mergeable) -> torch.Tensor:
    weight = attribute(module, sample(merge).name)
    assert isinstance(weight, torch.Tensor)
    return weight


def layer(kernel: Kernel, like: torch.Tensor) -> nn.Module:
    """The kernel as a module, its float64 numbers cast once; without a bias that is all zero."""
    bias = bool(kernel.bias.any())
    new = _empty(kernel, bias, like)
    with torch.no_grad():
        shape = new.get_parameter("weight").shape
        new.get_parameter("weight").copy_(torch.from_numpy(kernel.weight).reshape(shape))
        if bias:
            new.get_parameter("bias").copy_(torch.from_numpy(kernel.bias))
        order = CHANNELS_LAST.get(like.ndim)
        if order is not None and like.is_contiguous(memory_format=order) and not like.is_contiguous():
            new.get_parameter("weight").data = new.get_parameter("weight").contiguous(memory_format=order)
    return new.requires_grad_(like.requires_grad).eval()


def _empty(kernel: Kernel, bias: bool, like: torch.Tensor) -> nn.Module:
    """A layer of the kernel's sizes; made on `meta`, so that no time goes into initial weights."""
    conv, sizes = CONVS[kernel.rank], (kernel.in_channels, kernel.out_channels)
    made: nn.Module
    options: Any = {"bias": bias, "device": "meta", "dtype": like.dtype}
    if conv is None:
        made = nn.Linear(*sizes, **options)
    else:
        window = (kernel.taps, kernel.stride, kernel.padding, kernel.dilation, kernel.groups)
        made = conv(*sizes, *window, padding_mode=kernel.mode, **options)
    return made.to_empty(device=like.device)
