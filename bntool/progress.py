"""How a verb tells whoever called it how far it is, without knowing a terminal."""

from __future__ import annotations

from collections.abc import Callable

#: called with (what is being done, steps done, steps in all or 0 when unknown)
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """The progress of somebody who is not watching."""
