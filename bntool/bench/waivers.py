"""A known failure may be waived, with a reason and a date after which it counts again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatch
from typing import Any

from bntool.errors import UsageError


@dataclass(frozen=True)
class Waiver:
    """Failures of comparisons whose name matches are let through until the end of day `until`."""

    match: str
    until: date
    reason: str

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str) -> Waiver:
        missing = [name for name in ("until", "reason") if not raw.get(name)]
        if missing:
            raise UsageError(
                f"a waiver has no {missing[0]!r}", where=where, next="Every waiver ends and says why."
            )
        until = raw["until"]
        try:
            day = until if isinstance(until, date) else date.fromisoformat(str(until))
        except ValueError:
            raise UsageError(
                f"cannot read the date {until!r}", where=where, next="Write 2030-12-31."
            ) from None
        return cls(str(raw.get("match", "*")), day, str(raw["reason"]))

    def covers(self, name: str, today: date) -> bool:
        return today <= self.until and fnmatch(name, self.match)


def waived(waivers: Sequence[Waiver], name: str, today: date) -> str:
    """The reason a failure of `name` is let through today, or ""."""
    for waiver in waivers:
        if waiver.covers(name, today):
            return f"{waiver.reason} (until {waiver.until.isoformat()})"
    return ""


def expired(waivers: Sequence[Waiver], today: date) -> list[str]:
    """Sentences about waivers that no longer count."""
    return [f"the waiver for {w.match!r} ended on {w.until}: {w.reason}" for w in waivers if today > w.until]
