"""What an interval says about a claim: shown, not shown, reversed or inconclusive."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bntool.study.statistics import Interval


class Verdict(StrEnum):
    SHOWN = "shown"
    NOT_SHOWN = "not shown"
    REVERSED = "reversed"
    INCONCLUSIVE = "inconclusive"


def decide(effect: Interval, matters: float) -> Verdict:
    """Judge an effect whose positive side is the claim; effects smaller than `matters` do not count.

    shown: the interval is above 0 and the estimate at least `matters`. reversed: the mirror image.
    not shown: the interval excludes an effect as large as `matters`. Else inconclusive: too wide to tell.
    """
    if effect.low > 0.0 and effect.estimate >= matters:
        return Verdict.SHOWN
    if effect.high < 0.0 and effect.estimate <= -matters:
        return Verdict.REVERSED
    if effect.high < matters:
        return Verdict.NOT_SHOWN
    return Verdict.INCONCLUSIVE


def every(verdicts: Iterable[Verdict]) -> Verdict:
    """A claim that has to hold under all conditions."""
    found = set(verdicts)
    if len(found) == 1:
        return found.pop()
    if Verdict.NOT_SHOWN in found or {Verdict.SHOWN, Verdict.REVERSED} <= found:
        return Verdict.NOT_SHOWN
    return Verdict.INCONCLUSIVE


def some(verdicts: Iterable[Verdict]) -> Verdict:
    """A claim that has to hold under one condition at least ("sometimes")."""
    found = set(verdicts)
    for verdict in (Verdict.SHOWN, Verdict.INCONCLUSIVE, Verdict.NOT_SHOWN):
        if verdict in found:
            return verdict
    return Verdict.REVERSED if found else Verdict.INCONCLUSIVE


@dataclass(frozen=True)
class Measure:
    """One effect, its interval, the smallest size that counts, and what they say together.

    `unit` says what the numbers are; `primary` measures decide the claim's verdict, the others inform.
    """

    name: str
    effect: Interval
    matters: float
    unit: str
    primary: bool = False

    @property
    def verdict(self) -> Verdict:
        return decide(self.effect, self.matters)

    def to_dict(self) -> dict[str, Any]:
        shared = {"name": self.name, "unit": self.unit, "matters": self.matters, "primary": self.primary}
        return {**shared, **self.effect.to_dict(), "verdict": str(self.verdict)}
