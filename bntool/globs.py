"""Which qualified names a user's globs ask for."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def selected(name: str, include: Iterable[str], exclude: Iterable[str]) -> bool:
    """Whether the globs ask for `name`: nothing included means everything is."""
    return (not (wanted := list(include)) or matches(name, wanted)) and not matches(name, exclude)


def matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
