"""What is asked of insert, and what it reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

from bntool.errors import UsageError
from bntool.norms.kinds import KINDS, Spec
from bntool.placing.entry import InsertEntry
from bntool.placing.proof import EvalProof, TrainProof
from bntool.placing.sites import WHERE, Question, Site
from bntool.result import SCHEMA_VERSION


@dataclass(frozen=True)
class Options:
    """How norms are made and set."""

    norm: str = "batch"
    init: str = "preserve"
    form: str = "module"
    bias: str | None = None
    groups: int | None = None
    virtual_batch_size: int = 32
    eps: float = 1e-5
    momentum: float | None = 0.1
    gated: bool = False


@dataclass(frozen=True)
class Planned:
    """A site with the norm that goes there."""

    site: Site
    kind: str
    spec: Spec
    n_eff: int
    why: str

    @property
    def channels(self) -> int:
        return self.site.setting.channels if self.site.setting else 0

    @property
    def channel_dim(self) -> int:
        return -1 if self.site.setting and self.site.setting.last else 1


@dataclass(frozen=True)
class InsertReport:
    """What was inserted, what was left out and why, and how far the outputs moved.

    `keys` maps every old state-dict key to its new one (None: dropped), `keys_back` the other way; `plan`
    redoes the edit: `bntool.apply_plan(Net(), plan)`. `data` says what the statistics come from.
    """

    where: str
    init: str
    form: str
    data: str
    batch_size: int
    batches: int = 0
    samples: int = 0
    inserted: list[InsertEntry] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    eval: EvalProof | None = None
    train: list[TrainProof] = field(default_factory=list)
    keys: dict[str, str | None] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def keys_back(self) -> dict[str, str]:
        return {new: old for old, new in self.keys.items() if new is not None}

    def to_dict(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "keys_back": self.keys_back}


def check(question: Question, options: Options, batch_size: int | None) -> None:
    """Raises: UsageError on a word that is not known, and on a number that no norm can have."""
    allowed: dict[str, tuple[str | None, tuple[str | None, ...]]] = {
        "norm": (options.norm, (*KINDS, "auto")),
        "where": (question.where, WHERE),
        "init": (options.init, ("preserve", "fresh")),
        "form": (options.form, ("module", "graph")),
        "layers": (question.layers, (None, "conv", "linear", "all")),
        "bias": (options.bias, (None, "drop", "keep")),
    }
    for name, (value, choices) in allowed.items():
        if value not in choices:
            known = ", ".join(str(c) for c in choices if c)
            raise UsageError(f"unknown {name} {value!r}", where="insert", next=f"Use one of {known}.")
    check_numbers(
        eps=options.eps,
        momentum=options.momentum,
        groups=options.groups,
        virtual_batch_size=options.virtual_batch_size,
        batch_size=batch_size,
    )


#: the smallest and the largest that each may be
NUMBERS: dict[str, tuple[int, float]] = {
    "eps": (0, inf),
    "momentum": (0, 1),
    "groups": (1, inf),
    "virtual_batch_size": (1, inf),
    "batch_size": (1, inf),
}


def check_numbers(**given: float | None) -> None:
    """Raises: UsageError on one that is out of bounds; None is left to whoever uses it."""
    for name, value in given.items():
        low, high = NUMBERS[name]
        if value is not None and not low <= value <= high:
            bounds = f"from {low} to {high}" if high < inf else f"{low} or more"
            raise UsageError(f"no norm can have it: {value}", where=name, next=f"Give {bounds}.")
