"""What reaches the terminal: results on stdout, progress and messages on stderr.

rich is imported when something is drawn, so that help and usage errors stay fast.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from bntool.progress import Progress, silent

if TYPE_CHECKING:
    from rich.console import Console

#: columns of a table that is not drawn on a terminal (a file, a pipe)
PIPE_WIDTH = 160


@dataclass
class Settings:
    """How much to say; set once per run from -q, -v and --debug."""

    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    out: TextIO | None = None
    """Where results go while a command runs; None: to whatever is stdout."""


settings = Settings()


@contextmanager
def results_alone() -> Iterator[None]:
    """What a model, its factory or a library prints meanwhile goes to stderr: stdout is the result."""
    before, settings.out = settings.out, sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        settings.out = before


def results() -> TextIO:
    return settings.out or sys.stdout


def console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else results()
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, soft_wrap=False, no_color=no_color())


def no_color() -> bool:
    """https://no-color.org: set and not empty."""
    return bool(os.environ.get("NO_COLOR"))


def counted(number: int, what: str) -> str:
    """ "1 norm", "2 norms"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def note(text: str) -> None:
    """A message about what is going on; -q silences it."""
    if not settings.quiet:
        print(text, file=sys.stderr)


def detail(text: str) -> None:
    """A message for -v."""
    if settings.verbose:
        print(text, file=sys.stderr)


def warn(text: str) -> None:
    """A message that -q does not silence."""
    print(f"warning: {text}", file=sys.stderr)


def emit_json(document: Mapping[str, Any]) -> None:
    """One JSON document on stdout. Non-finite numbers, which JSON has not, become null."""
    say(json.dumps(plain(document), indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def say(text: str = "") -> None:
    """A line of the result, on stdout."""
    print(text, file=results())


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "", right: Sequence[str] = ()
) -> None:
    """A table on stdout; the columns named in `right` are aligned right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        drawn.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    console().print(drawn)


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Aligned `name  value` lines on stdout."""
    rows = [(name, str(value)) for name, value in pairs]
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        say(f"{name:<{width}}  {value}")


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bntool Progress drawn on stderr; silent off a terminal and with -q."""
    if settings.quiet or not sys.stderr.isatty():
        yield silent
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)

        def report(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total or None)

        yield report
