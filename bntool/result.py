"""What a verb gives back: the model and a report. Every rendering of a report is derived from `to_dict`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Protocol, TypeVar

SCHEMA_VERSION = 1


class Report(Protocol):
    """Anything with a JSON form that carries `schema_version`."""

    def to_dict(self) -> dict[str, Any]: ...


M = TypeVar("M")
R = TypeVar("R", bound=Report)


@dataclass(frozen=True)
class Result(Generic[M, R]):
    """A verb's outcome. `model` is the new model; the one passed in is as it was."""

    model: M
    report: R


@dataclass(frozen=True)
class FoldEntry:
    """What became of one norm.

    `side` is "after" when the map went behind the layers named in `into` (up, into what feeds the norm),
    "before" when it went in front of them, "both" when scale and shift parted. `reason` is empty unless the
    norm was kept.
    Units: `parameters_saved` and `macs_saved` are counts (negative when a bias had to be added; MACs with the
    example inputs, None without them or without verification); `bytes_saved` counts parameters and buffers.
    """

    name: str
    into: str = ""
    side: str = ""
    reason: str = ""
    scale_min: float | None = None
    scale_max: float | None = None
    parameters_saved: int = 0
    macs_saved: int | None = None
    bytes_saved: int = 0


@dataclass(frozen=True)
class MergedLayer:
    """One layer in the place of several: what that saves beyond the norms among them, which are entries.

    Units: as in `FoldEntry`; a number is negative where the new layer holds more than those it replaces.
    """

    name: str
    replaces: list[str]
    parameters_saved: int = 0
    macs_saved: int | None = None
    bytes_saved: int = 0

    def __str__(self) -> str:
        return f"{self.name} replaces {', '.join(self.replaces)}"


@dataclass(frozen=True)
class FoldReport:
    """Every norm that was found: `folded` or `kept`."""

    found: int = 0
    folded: list[FoldEntry] = field(default_factory=list)
    kept: list[FoldEntry] = field(default_factory=list)
    verification: Any = None
    """How the result was checked against the original; None when it was not."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know of the analysis: parts that were opaque, sizes that were not known."""
    merged: list[MergedLayer] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    """Redoes the fold of a module: `bntool.apply_plan(Net(), plan)`. A graph or a file has none."""

    def to_dict(self) -> dict[str, Any]:
        checked = self.verification.to_dict() if self.verification is not None else None
        return {
            "schema_version": SCHEMA_VERSION,
            "found": self.found,
            "folded": [asdict(e) for e in self.folded],
            "kept": [asdict(e) for e in self.kept],
            "merged": [asdict(layer) for layer in self.merged],
            "verification": checked,
            "notes": list(self.notes),
            "plan": self.plan,
        }
