"""Merged layers in a fold's report: what each replaces, and what it and its norms save."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from bntool.branch_ops import parameter_of
from bntool.branches import Merge
from bntool.graphs.base import Graph, Node
from bntool.graphs.merged import sample
from bntool.plan import own_map
from bntool.report.folds import scale_range
from bntool.report.savings import LEARNED, size_of
from bntool.result import FoldEntry, FoldReport, MergedLayer


@dataclass(frozen=True)
class Merged:
    """One new layer, and the norms that went into it.

    Units: `macs_saved` is a count for the example inputs, norms included.
    """

    layer: MergedLayer
    entries: tuple[FoldEntry, ...]
    macs_saved: int

    @property
    def into(self) -> str:
        return self.layer.name

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.layer.replaces)

    @property
    def norms(self) -> list[str]:
        return [entry.name for entry in self.entries]


def merged(graph: Graph, merges: Sequence[Merge], names: Sequence[str], prefix: str = "") -> list[Merged]:
    """What became of the merges found in `graph`; those without a name were not made."""
    done = [(m, prefix + name) for m, name in zip(merges, names, strict=True) if name]
    count = _Count.of(graph, [m for m, _ in done])
    return [count.merged(merge, name, prefix) for merge, name in done]


def norms_of(several: Iterable[Merged]) -> list[str]:
    return [norm for one in several for norm in one.norms]


@dataclass
class _Count:
    """Counts each tensor that nothing reads any more once; `stay` are those that others still read."""

    graph: Graph
    stay: set[Hashable]
    counted: set[Hashable] = field(default_factory=set)

    @classmethod
    def of(cls, graph: Graph, merges: Sequence[Merge]) -> _Count:
        gone = {id(node) for merge in merges for node in _superfluous(merge)}
        others = [node for node in graph.nodes if id(node) not in gone]
        return cls(graph, {p.stored for node in others for p in node.params.values()})

    def merged(self, merge: Merge, name: str, prefix: str) -> Merged:
        norms = [node for node in merge.inside if node.kind == "batch_norm"]
        entries = {node.where: self._entry(node, name, prefix) for node in norms}
        parameters, size = self._gone([n for n in _superfluous(merge) if n not in norms], of_norms=False)
        new = [merge.kernel.weight.shape] + [merge.kernel.bias.shape] * bool(merge.kernel.bias.any())
        made = [size_of(shape, sample(merge)) for shape in new]
        layer = MergedLayer(
            name,
            list(dict.fromkeys(prefix + n.where for n in merge.weighted)),
            parameters_saved=parameters - sum(values for values, _ in made),
            macs_saved=merge.macs_saved - sum(e.macs_saved or 0 for e in entries.values()),
            bytes_saved=size - sum(size for _, size in made),
        )
        return Merged(layer, tuple(entries.values()), merge.macs_saved)

    def _entry(self, norm: Node, into: str, prefix: str) -> FoldEntry:
        parameters, size = self._gone([norm], of_norms=True)
        macs = prod(self.graph.shape(norm) or ())
        low, high = scale_range(own_map(norm))
        return FoldEntry(
            prefix + norm.where,
            into,
            "merged",
            scale_min=low,
            scale_max=high,
            parameters_saved=parameters,
            macs_saved=macs,
            bytes_saved=size,
        )

    def _gone(self, nodes: Sequence[Node], *, of_norms: bool) -> tuple[int, int]:
        """(parameters, bytes) of tensors that only these nodes read; statistics are no parameters."""
        parameters = size = 0
        for node in nodes:
            for name, param in node.params.items():
                if param.stored in self.stay or param.stored in self.counted:
                    continue
                self.counted.add(param.stored)
                values, of_it = size_of(param.shape, param)
                parameters += values if name in LEARNED or not of_norms else 0
                size += of_it + (node.attrs.get("counter_bytes", 0) if name == "mean" else 0)
        return parameters, size


def _superfluous(merge: Merge) -> list[Node]:
    """The nodes inside, and the constants that only they read."""
    gone = {id(node): node for node in merge.inside}
    todo = [value for node in merge.inside for value in node.inputs]
    while todo:
        value = todo.pop()
        only = all(id(reader) in gone for reader, _ in value.users)
        if id(value) not in gone and only and parameter_of(value) is not None:
            gone[id(value)] = value
            todo += value.inputs
    return list(gone.values())


def with_merged(report: FoldReport, several: Sequence[Merged]) -> FoldReport:
    """The report with the norms that went into merged layers, and with these layers."""
    entries = [entry for one in several for entry in one.entries]
    return replace(
        report,
        found=report.found + len(entries),
        folded=[*entries, *report.folded],
        merged=[one.layer for one in several],
        notes=[*report.notes, *(str(one.layer) for one in several)],
    )
