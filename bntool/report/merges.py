"""Merged layers in a fold's report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bntool.branches import Merge
from bntool.result import FoldEntry, FoldReport


@dataclass(frozen=True)
class Merged:
    """One new layer and what it replaces.

    Units: `macs_saved` is a count for the example inputs.
    """

    into: str
    layers: tuple[str, ...]
    norms: tuple[str, ...]
    macs_saved: int

    @classmethod
    def of(cls, merge: Merge, into: str, prefix: str = "") -> Merged:
        layers = tuple(dict.fromkeys(prefix + n.where for n in merge.weighted))
        norms = tuple(dict.fromkeys(prefix + n.where for n in merge.inside if n.kind == "batch_norm"))
        return cls(prefix + into, layers, norms, merge.macs_saved)

    def __str__(self) -> str:
        return f"{self.into} replaces {', '.join(self.layers)}"


def with_merged(report: FoldReport, merged: Sequence[Merged]) -> FoldReport:
    """The report with the norms that went into merged layers, and a note for each of these."""
    entries = [FoldEntry(norm, m.into, "merged") for m in merged for norm in m.norms]
    return replace(
        report,
        found=report.found + len(entries),
        folded=[*entries, *report.folded],
        notes=[*report.notes, *map(str, merged)],
    )
