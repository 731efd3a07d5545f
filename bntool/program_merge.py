"""Merges -> a torch.export program: each becomes one call with tensors of its own; what it replaces goes."""

from __future__ import annotations

import operator
from collections.abc import Sequence, Set
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from bntool.algebra.kernels import Kernel, without_padding
from bntool.branch_ops import parameter_of
from bntool.branches import find_merges
from bntool.globs import matches
from bntool.graphs.aten_schema import aten_name
from bntool.graphs.base import Mergeable
from bntool.graphs.exported import program_graph
from bntool.graphs.fx_merge import is_needed, replaceable
from bntool.graphs.merged import merged_name, sample
from bntool.program_edit import ProgramEdit, like, value_of
from bntool.report.merges import Merged, merged

CONVS: tuple[Any, ...] = (
    None,
    torch.ops.aten.conv1d.default,
    torch.ops.aten.conv2d.default,
    torch.ops.aten.conv3d.default,
)


def merge_branches(
    program: ExportedProgram, inputs: Any = None, *, keep: Sequence[str] = ()
) -> tuple[ExportedProgram, list[Merged]]:
    """A program in which sums and chains of linear ops are single calls, until nothing is left to merge.

    The program itself, where there is nothing.
    """
    done: list[Merged] = []
    while True:
        graph = program_graph(program, inputs)
        merges = find_merges(graph, keep=lambda n: matches(n.where, keep))
        edit = ProgramEdit.of(program)
        names = [_apply(edit, merge) if replaceable(merge) else "" for merge in merges]
        done += merged(graph, merges, names)
        if not any(names):
            return program, done
        program = edit.rebuilt()


def _apply(edit: ProgramEdit, merge: Mergeable) -> str:
    """The new layer's name; empty where the program's operators have no call for it."""
    old, base = edit.own(merge.at), value_of(edit.own(merge.base))
    core = _is_core(edit, merge)
    if core and merge.kernel.rank == 0 and base.meta["val"].dim() != 2:
        return ""  # core ATen has no linear layer, and its products have two dimensions
    if core and merge.kernel.mode != "zeros":
        return ""
    name = merged_name(merge, {key.rpartition(".")[0] for key in (*edit.state, *edit.constants)})
    weight, bias = _tensors(edit, merge, name)
    with edit.graph.inserting_after(value_of(old)):
        new = _call(edit.graph, merge.kernel, base, weight, bias, core=core)
    new.meta = dict(value_of(old).meta)
    edit.read_instead(old, new)
    _drop_unneeded(edit.graph, {edit.own(node) for node in merge.inside})
    _erase(edit.graph, old)
    operands = [parameter for inner in merge.inside for parameter in map(parameter_of, inner.inputs)]
    read = [*merge.inside, *(node for node in operands if node is not None)]
    edit.forget([param.name for node in read for param in node.params.values()])
    return name


def _is_core(edit: ProgramEdit, merge: Mergeable) -> bool:
    """Whether the program has been decomposed into core ATen."""
    names = {aten_name(edit.own(node)) for node in merge.inside}
    return bool(names & {"convolution", "addmm", "mm", "bmm"})


def _tensors(edit: ProgramEdit, merge: Mergeable, name: str) -> tuple[fx.Node, fx.Node | None]:
    """The new layer's weight, and its bias unless it is all zero, as inputs of the program."""
    beside, kernel = sample(merge).name, merge.kernel
    old = edit.tensor(beside)

    def lifted(leaf: str, values: Any, behind: str) -> fx.Node:
        tensor: Tensor = torch.from_numpy(values).to(old.device, old.dtype)
        return edit.new_input(behind, f"{name}.{leaf}", like(tensor, old))

    weight = lifted("weight", kernel.weight, beside)
    return weight, lifted("bias", kernel.bias, f"{name}.weight") if kernel.bias.any() else None


def _call(
    graph: fx.Graph, kernel: Kernel, base: fx.Node, weight: fx.Node, bias: fx.Node | None, *, core: bool
) -> fx.Node:
    aten = torch.ops.aten
    if kernel.mode != "zeros":
        pad = _padded(graph, base, kernel)
        with graph.inserting_after(pad):
            return _call(graph, without_padding(kernel), pad, weight, bias, core=core)
    window = [list(sizes) for sizes in (kernel.stride, kernel.padding, kernel.dilation)]
    if kernel.rank and core:
        args = (base, weight, bias, *window, False, [0] * kernel.rank, kernel.groups)
        return graph.call_function(aten.convolution.default, args)
    if kernel.rank:
        return graph.call_function(CONVS[kernel.rank], (base, weight, bias, *window, kernel.groups))
    if not core:
        return graph.call_function(aten.linear.default, (base, weight, bias))
    turned = graph.call_function(aten.permute.default, (weight, [1, 0]))
    turned.meta = {"val": weight.meta["val"].permute(1, 0)}
    with graph.inserting_after(turned):
        if bias is None:
            return graph.call_function(aten.mm.default, (base, turned))
        return graph.call_function(aten.addmm.default, (bias, base, turned))


def _padded(graph: fx.Graph, base: fx.Node, kernel: Kernel) -> fx.Node:
    """A call that pads with values of what it is given, which no convolution of ATen's does."""
    flat = [width for width in reversed(kernel.padding) for _ in range(2)]
    pad = graph.call_function(torch.ops.aten.pad.default, (base, flat, kernel.mode))
    pad.meta = {"val": torch.ops.aten.pad.default(base.meta["val"], flat, kernel.mode)}
    return pad


def _drop_unneeded(graph: fx.Graph, inside: Set[fx.Node]) -> None:
    """Take out what nobody needs of what is computed from values inside a merge, and would keep them."""
    todo = [reader for node in inside for reader in node.users if not is_needed(reader, inside)]
    dropped = set[fx.Node]()
    while todo:
        dropped.add(reader := todo.pop())
        todo += [user for user in reader.users if user not in dropped]
    for node in reversed(graph.nodes):
        if node in dropped - inside and not node.users:
            graph.erase_node(node)


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Take out a node that nobody reads, its unread pieces, and then what only it read."""
    for user in list(node.users):
        if user.target is operator.getitem and not user.users:
            graph.erase_node(user)
    if node.users or node.op != "call_function":
        return
    read = node.all_input_nodes
    graph.erase_node(node)
    for value in read:
        _erase(graph, value)
