"""What follows for the model: which norm, at which sites, rates and batch sizes, with the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bntool.study.claims.base import Finding, called
from bntool.study.claims.unlearnt import ADVICE, nothing_learnt
from bntool.study.normstats import values_per_channel
from bntool.study.plan import CLAIMS, Plan
from bntool.study.setting import Setting
from bntool.study.trial import Trial
from bntool.study.verdict import Verdict

#: values per statistic below which batch norm was seen to fail here and elsewhere
FEW_VALUES = 8
UNDECIDED = "undecided"
#: the claims that say what a norm is good for
HELPS = ("stability", "speed", "regularisation", "depth")


@dataclass(frozen=True)
class Site:
    """One norm: how many values a batch gives each of its channels, and what to put there."""

    name: str
    n_eff: int
    norm: str
    why: str


@dataclass(frozen=True)
class Recommendation:
    """`norm` for the model as a whole, or "undecided"; `sites` where it goes.

    `sentences` carry the evidence. `rates` is the range that trains; `too_small` are batch sizes.
    """

    norm: str
    sentences: tuple[str, ...]
    sites: tuple[Site, ...] = ()
    rates: tuple[float, float] | None = None
    too_small: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def recommend(plan: Plan, findings: Sequence[Finding], setting: Setting) -> Recommendation:
    by_claim = {f.claim: f for f in findings}
    norm, sentences = choose_norm(plan, by_claim)
    sentences += initialisation_said(by_claim) + sorted_said(plan, by_claim)
    rates = rate_range(plan, by_claim, norm)
    if rates is not None:
        sentences.append(
            f"Learning rates from {rates[0]:.3g} to {rates[1]:.3g} train with {called(norm)} "
            f"({plan.optimizer}, claim 2)."
        )
    small = too_small(plan, by_claim)
    if small:
        sizes = ", ".join(map(str, small))
        sentences.append(
            f"Do not use {called(plan.treated)} with batches of {sizes}: use another norm there (claim 5)."
        )
    return Recommendation(norm, tuple(sentences), tuple(sites(plan, setting, norm, small)), rates, small)


def choose_norm(plan: Plan, found: dict[str, Finding]) -> tuple[str, list[str]]:
    """The norm in question if it helps with anything, another one where that is better, none where nothing
    is.
    """
    helps = [found[c] for c in HELPS if c in found]
    shown = [f for f in helps if f.verdict is Verdict.SHOWN]
    harmed = [f for f in helps if f.verdict is Verdict.REVERSED]
    said = [f"Claim {f.number} {f.verdict}: {f.headline}" for f in (*shown, *harmed)]
    open_ = [f for f in helps if f.verdict is Verdict.INCONCLUSIVE and f.facts.get("possible", True)]
    if nothing_learnt(helps):
        return UNDECIDED, [f"Networks that learn nothing settle nothing. {ADVICE}", *said]
    if not shown and open_:
        numbers = ", ".join(str(f.number) for f in open_)
        size = f"{plan.seeds} seeds and {plan.steps} steps"
        return UNDECIDED, [f"{size} do not settle claims {numbers}: give a larger --budget.", *said]
    left_out = ", ".join(str(CLAIMS.index(c) + 1) for c in HELPS if c not in found)
    if not shown and left_out:
        return UNDECIDED, [
            f"Whether it helps depends also on claims {left_out}, which were not studied.",
            *said,
        ]
    if not shown:
        cost = found.get("cost")
        tail = f" It costs: {cost.headline}" if cost is not None and cost.verdict is Verdict.SHOWN else ""
        return plan.baseline, [
            f"Nothing here shows that {called(plan.treated)} helps this model.{tail}",
            *said,
        ]
    rival = better_rival(plan, found)
    if rival:
        return rival, [
            f"{called(rival).capitalize()} did better than {called(plan.treated)} with shuffled batches "
            "(claim 7).",
            *said,
        ]
    return plan.treated, said


def better_rival(plan: Plan, found: dict[str, Finding]) -> str:
    """An alternative shown to be better in ordinary training."""
    finding = found.get("alternatives")
    if finding is None:
        return ""
    ordinary = [m for m in finding.measures if m.primary and m.name.endswith("shuffled batches")]
    return next((m.name.split(" over ")[0] for m in ordinary if m.verdict is Verdict.SHOWN), "")


def initialisation_said(found: dict[str, Finding]) -> list[str]:
    """Where another initialisation does what the norm does."""
    mine = [found[c] for c in ("stability", "depth") if c in found]
    return [f"{c} (Claim {f.number}.)" for f in mine for c in f.conditions if c.startswith("So ")]


def sorted_said(plan: Plan, found: dict[str, Finding]) -> list[str]:
    finding = found.get("alternatives")
    batches = [m for m in finding.measures if m.name.endswith("class-sorted batches")] if finding else []
    return [
        f"Where batches are not shuffled, {called(m.name.split(' over ')[0])} is better by "
        f"{m.effect.estimate:.3f} (claim 7)."
        for m in batches
        if m.primary and m.verdict is Verdict.SHOWN
    ]


def rate_range(plan: Plan, found: dict[str, Finding], norm: str) -> tuple[float, float] | None:
    working = found["speed"].facts["working"].get(norm) if "speed" in found else None
    return (min(working), max(working)) if working else None


def too_small(plan: Plan, found: dict[str, Finding]) -> tuple[int, ...]:
    """Batch sizes at which the norm was shown to be behind the one that does not see the batch."""
    finding = found.get("small-batches")
    if finding is None:
        return ()
    behind = [m for m in finding.measures if f"ahead of {plan.treated} at batch" in m.name]
    return tuple(int(m.name.rsplit(" ", 1)[1]) for m in behind if m.verdict is Verdict.SHOWN)


def sites(plan: Plan, setting: Setting, norm: str, small: Sequence[int]) -> list[Site]:
    """Every place where our insert puts the norm in question, judged by how many values it sees."""
    model = setting.build(Trial(plan.treated, plan.seed))
    values = values_per_channel(model, setting.example(2), plan.batch_size)
    return [Site(name, count, *advice(plan, norm, count, small)) for name, count in values.items()]


def advice(plan: Plan, norm: str, count: int, small: Sequence[int]) -> tuple[str, str]:
    if norm == UNDECIDED:
        return norm, f"{count} values a channel in a batch of {plan.batch_size}"
    if norm == plan.baseline:
        return norm, "no benefit shown"
    if norm == plan.treated and count < FEW_VALUES:
        other = "group" if "group" in plan.others else (plan.others[0] if plan.others else plan.baseline)
        return other, f"only {count} values a channel in a batch of {plan.batch_size}"
    return norm, f"{count} values a channel in a batch of {plan.batch_size}" + (
        f"; not at batch {', '.join(map(str, small))}" if small and norm == plan.treated else ""
    )
