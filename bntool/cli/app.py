"""The `bntool` program: its commands, and how an error becomes one message and an exit code."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=True)


def main() -> None:
    app()
