"""Numbers as people write them: 5%, 10s, 0.1ms, 12MB; and back again."""

from __future__ import annotations

import math
import re

from bntool.errors import UsageError

_NUMBER = re.compile(r"\s*([0-9.]+(?:e-?\d+)?)\s*([a-zA-Zµ%]*)\s*")
SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "m": 60.0, "min": 60.0}
SHARES = {"": 1.0, "%": 0.01}
COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}


def _parse(text: str, units: dict[str, float], where: str, example: str) -> float:
    match = _NUMBER.fullmatch(str(text))
    try:
        assert match is not None
        return float(match[1]) * units[match[2] if match[2] in units else match[2].lower()]
    except (AssertionError, KeyError, ValueError):
        raise UsageError(f"cannot read {text!r}", where=where, next=f"Write {example}.") from None


def seconds(text: str | float, where: str) -> float:
    """`10s`, `0.1ms`, `2m`; a plain number is seconds. Raises: UsageError."""
    return _parse(str(text), SECONDS, where, "10s or 0.1ms")


def share(text: str | float, where: str) -> float:
    """`5%` or `0.05`, but not `5`, which is as likely meant as the one as written as the other.

    Raises: UsageError.
    """
    found = _parse(str(text), SHARES, where, "5% or 0.05")
    if found >= 1.0 and "%" not in str(text):
        raise UsageError(f"{text} is {found:.0%}", where=where, next=f"Write {text}% if you mean that.")
    return found


def count(text: str | float, where: str) -> int:
    """`12MB`, `1.5M`, `300`. Raises: UsageError."""
    return round(_parse(str(text), COUNTS, where, "12MB, 1.5M or 300"))


def speedup(text: str | float, where: str) -> float:
    """`1.2`, `1.2x` or `20%`: how many times faster. Raises: UsageError."""
    plain = str(text).strip()
    if plain.endswith("%"):
        return 1.0 + share(plain, where)
    return _parse(plain.removesuffix("x"), {"": 1.0}, where, "1.2x or 20%")


def show_s(value: float | None) -> str:
    """Seconds with three digits and a unit a person reads."""
    if value is None or not math.isfinite(value):
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}" if abs(value) / size < 1000 else f"{value / size:.0f} {unit}"
    return f"{value * 1e9:.3g} ns"


def show_count(value: float | None, unit: str = "") -> str:
    """A count or size with three digits: 77.1k, 1.53M."""
    if value is None or not math.isfinite(value):
        return "-"
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".strip()


def show_change(ratio: float | None) -> str:
    """A ratio as a change: 1.034 is +3.4 %."""
    return "-" if ratio is None or not math.isfinite(ratio) else f"{(ratio - 1.0) * 100.0:+.1f} %"
