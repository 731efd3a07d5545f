"""Which qualified names a user's globs ask for."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def selected(name: str, include: Iterable[str], exclude: Iterable[str]) -> bool:
    """Whether the globs ask for `name`: nothing included means everything is."""
    return (not (wanted := list(include)) or matches(name, wanted)) and not matches(name, exclude)


def listed(globs: str | Iterable[str] | None) -> tuple[str, ...]:
    """What a caller gives for globs: one as it is means one, and not its letters."""
    return (globs,) if isinstance(globs, str) else tuple(globs or ())


def matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
