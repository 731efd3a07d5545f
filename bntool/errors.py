"""The exception tree. Every error a user can cause says what, where and what to do next."""

from __future__ import annotations


class BntoolError(Exception):
    """A problem the user can act on.

    `what` happened, `where` (a module path, a file, a flag) and what to do `next`. `exit_code` is what the
    command line ends with.
    """

    exit_code = 4

    def __init__(self, what: str, *, where: str = "", next: str = "") -> None:
        self.what, self.where, self.next = what, where, next
        super().__init__(what)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        ended = head if head.endswith("?") else f"{head}."
        return f"{ended} {self.next}" if self.next else head


def on_one_line(text: object, most: int = 300) -> str:
    """Somebody else's message: without line breaks, and cut short where it goes on and on."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


class UsageError(BntoolError):
    """The call itself makes no sense: an unknown option value, contradictory flags."""

    exit_code = 2


class LoadError(BntoolError):
    """A model, weights, data or configuration cannot be loaded or read."""

    exit_code = 3


class RunError(BntoolError):
    """The work itself failed: the model raised, the exporter gave up."""

    exit_code = 4


class VerificationError(BntoolError):
    """The result does not compute what the original computes; nothing was written."""

    exit_code = 6
