"""What a folded norm saves: its own tensors that nothing else reads, less the biases that had to be added."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from math import prod

from bntool.algebra.linear import out_channels
from bntool.graphs.base import Graph, Node, Param
from bntool.plan import Plan, Step
from bntool.rewriting import adds_bias

#: owner of parameters -> the (values, bytes) that it has more than before
Grown = dict[Hashable, tuple[int, int]]
BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
LEARNED = ("weight", "bias")


@dataclass
class Savings:
    """What a plan saves on a graph, each tensor counted once, with the first norm it is of."""

    plan: Plan
    graph: Graph
    grown: Grown
    counted: set[Hashable] = field(default_factory=set)

    def __post_init__(self) -> None:
        stay = [n for n in self.graph.nodes if n.owner not in self.plan.folded_owners]
        self.read = {param.stored for node in stay for param in node.params.values()}

    def of(self, step: Step) -> tuple[int, int]:
        """(parameters, bytes), negative where more had to be added. Parameters are gamma and beta."""
        call = step.norm.calls[0]
        gone = {name: param for name, param in call.params.items() if self._goes(param)}
        parameters = sum(prod(gone[name].shape) for name in LEARNED if name in gone)
        size = sum(size_of(param.shape, param)[1] for param in gone.values())
        counter = call.attrs.get("counter_bytes", 0) if "mean" in gone else 0
        added = [self._grown(absorb.node.owner) for absorb in step.absorbed]
        return parameters - sum(n for n, _ in added), size + counter - sum(b for _, b in added)

    def _goes(self, param: Param) -> bool:
        """Whether a folded norm's tensor is read by nothing that stays, and was not counted before."""
        if param.stored in self.counted or param.stored in self.read:
            return False
        self.counted.add(param.stored)
        readers = self.graph.readers(param.key)
        return all(reader.owner in self.plan.folded_owners for reader in readers)

    def _grown(self, owner: Hashable) -> tuple[int, int]:
        if owner in self.counted:
            return 0, 0
        self.counted.add(owner)
        return self.grown.get(owner, (0, 0))

    def macs(self, calls: list[Node]) -> int | None:
        """One multiply-add for every element over the calls; where ways part, on the costliest."""
        ways: dict[int, int] = {}
        for call in calls:
            shape = self.graph.shape(call)
            if shape is None:
                return None
            way = id(getattr(call.origin, "graph", None))
            ways[way] = ways.get(way, 0) + prod(shape)
        return max(ways.values(), default=0)


def new_biases(plan: Plan) -> Grown:
    """The biases that layers get which had none."""
    biased = [change.node for change in plan.changes.values() if adds_bias(change)]
    return {node.owner: size_of(_outs(node), node.params["weight"]) for node in biased}


def _outs(node: Node) -> tuple[int, ...]:
    return (out_channels(node.kind, node.params["weight"].shape, node.attrs),)


def size_of(shape: tuple[int, ...], like: Param) -> tuple[int, int]:
    """(values, bytes) of a tensor of the dtype of `like`."""
    return prod(shape), prod(shape) * _width(like)


def _width(param: Param) -> int:
    return BYTES.get(param.dtype, 4)
