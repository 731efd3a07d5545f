"""nn.Module as a graph of the neutral vocabulary: every way through it, and parts that cannot be traced."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from bntool.algebra.absorbing import NORMS
from bntool.algebra.affine import Blocked
from bntool.algebra.rules import DATA_SIZES
from bntool.graphs.base import Index, Node, Shape, connect
from bntool.graphs.fx_calls import function_name
from bntool.graphs.fx_frozen import is_frozen_norm
from bntool.graphs.fx_kinds import PIECES
from bntool.graphs.fx_seen import seen_roots
from bntool.graphs.fx_sizes import UNKNOWN, Sizes
from bntool.graphs.fx_ways import Way, is_whole
from bntool.graphs.walk import modules_in


@dataclass
class FxGraph:
    """The union of all ways through a module and through its islands."""

    root: nn.Module
    for_other_batches: bool = False
    """Whether it has ways for other batches that only move other data."""
    dark: set[str] = field(default_factory=set)
    """Modules whose own code cannot be traced."""
    kept: dict[nn.Module, frozenset[str]] = field(default_factory=dict)
    """Of those, the attributes in which they keep what their next calls read."""
    called_there: set[str] = field(default_factory=set)
    """Single layers that such code calls and does nothing else with."""
    nodes: list[Node] = field(default_factory=list)
    sizes_of: dict[int, Sizes] = field(default_factory=dict)
    reading: dict[Hashable, list[Node]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    aside: list[tuple[str, str]] = field(default_factory=list)
    """Norms that are calls of functions but no nodes, each with the reason."""
    ways: list[Way] = field(default_factory=list)
    indices: dict[int, Index | Blocked] = field(default_factory=dict)
    owners: dict[Hashable, int] = field(default_factory=dict)
    """Numbers for what nodes compute with: they are looked up far more often than made."""

    @property
    def is_one(self) -> bool:
        """Whether a torch.fx graph, which leaves buffers where they are, can take the model's place."""
        return is_whole(self.ways) and not self.notes and not self.ways[0].rebound

    def shape(self, node: Node) -> Shape:
        value = self._value(node)
        if isinstance(value, torch.Tensor):
            return tuple(value.shape)
        return () if isinstance(value, (int, float)) else None

    def unsized(self, node: Node) -> Blocked:
        known = isinstance(node.origin, fx.Node)
        return self.sizes_of[id(node.origin.graph)].unsized if known else DATA_SIZES

    def dtype(self, node: Node) -> str | None:
        value = self._value(node)
        return str(value.dtype).removeprefix("torch.") if isinstance(value, torch.Tensor) else None

    def _value(self, node: Node) -> Any:
        if not isinstance(node.origin, fx.Node):
            return UNKNOWN
        return self.sizes_of[id(node.origin.graph)].value(node.origin)

    def index(self, node: Node) -> Index | Blocked:
        if id(node) not in self.indices:
            self.indices[id(node)] = self._index(node)
        return self.indices[id(node)]

    def _index(self, node: Node) -> Index | Blocked:
        sizes = self.shape(node.inputs[0])
        if sizes is None:
            return self.unsized(node.inputs[0])
        try:
            index = moved_index(node.origin, self.sizes_of[id(node.origin.graph)], self.root, sizes)
        except Exception as error:
            return Blocked(f"what it moves where cannot be followed ({type(error).__name__})")
        return index if index.size else Blocked("it leaves nothing of what it is given, as large as that is")

    def readers(self, key: Hashable) -> Sequence[Node]:
        return self.reading.get(key, [])

    def add(self, node: Node) -> Node:
        self.nodes.append(node)
        for param in node.params.values():
            self.reading.setdefault(param.key, []).append(node)
        return node

    def finish(self) -> None:
        """Connect the nodes."""
        connect(self.nodes, seen_roots(self.nodes))

    def left_out(self) -> list[tuple[str, str]]:
        """Norms of the model that are no node of the graph, each with the reason."""
        seen = {node.where for node in self.nodes if node.kind in NORMS}
        hidden = [n.where for n in self.nodes if n.kind == "opaque" and not n.inputs]
        never = [(name, _why_left_out(name, hidden)) for name in norm_modules(self.root) if name not in seen]
        return never + self.aside


def norm_modules(root: nn.Module) -> list[str]:
    """Paths of the modules that normalise with running statistics."""
    bases = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
    modules = modules_in(root)
    own = [(n, m) for n, m in modules if isinstance(m, bases)]
    frozen = [n for n, m in modules if is_frozen_norm(m)]
    return [n for n, m in own if m.track_running_stats or not isinstance(m, bases[1])] + frozen


def _why_left_out(name: str, hidden: list[str]) -> str:
    if not name:
        return "it is all there is: nothing feeds it, and it feeds nothing"
    if "_orig_mod" in name.split("."):
        return "torch.compile has taken the model: fold the one it was made of, then compile"
    inside = any((name + ".").startswith(path + ".") for path in hidden)
    return "code that cannot be traced calls it" if inside else "the model never calls it"


def moved_index(node: fx.Node, sizes: Sizes, root: nn.Module, shape: tuple[int, ...]) -> Index:
    """Run a data movement on numbered elements (from 1, so that a padded zero shows)."""
    numbered = torch.arange(1, int(np.prod(shape)) + 1, dtype=torch.float64).reshape(shape)
    moved: Index = _rerun(node, sizes, root, numbered).numpy().astype(np.int64)
    return moved - 1


def _rerun(node: fx.Node, sizes: Sizes, root: nn.Module, numbered: torch.Tensor) -> Any:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if is_piece(node):
        inner = source.args[0]
        pieces = _apply(
            source, [numbered, *_real(source.args[1:], sizes, root)], _real(source.kwargs, sizes, root)
        )
        del inner
        return pieces[node.args[1]]
    return _apply(node, [numbered, *_real(node.args[1:], sizes, root)], _real(node.kwargs, sizes, root))


def _apply(node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    kwargs = {k: v for k, v in kwargs.items() if k != "input"}
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _real(arguments: Any, sizes: Sizes, root: nn.Module) -> Any:
    """Arguments with their sizes filled in; tensors among them are real, or stand-ins of the right shape."""

    def one(node: fx.Node) -> Any:
        if node.op == "get_attr":
            return sizes.tensor(str(node.target)).detach().cpu()
        value = sizes.value(node)
        if value is UNKNOWN:
            raise ValueError("unknown size")
        return torch.zeros(()).expand(value.shape) if isinstance(value, torch.Tensor) else value

    return fx.node.map_arg(arguments, one)


def is_piece(node: fx.Node) -> bool:
    """Whether a node takes one of the pieces a split gives."""
    source = node.args[0] if node.args else None
    return (
        function_name(node) == "getitem"
        and isinstance(source, fx.Node)
        and function_name(source) in PIECES
        and isinstance(node.args[1], int)
    )
