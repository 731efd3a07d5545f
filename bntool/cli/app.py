"""The `bntool` program: its commands, and how an error becomes one message and an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from bntool.cli import screen, settings
from bntool.cli.bench import bench
from bntool.cli.calibrate import calibrate
from bntool.cli.demo import demo
from bntool.cli.examples import epilog
from bntool.cli.export import export
from bntool.cli.fold import fold
from bntool.cli.insert import insert
from bntool.cli.inspect import inspect
from bntool.cli.replace import replace
from bntool.cli.study import study
from bntool.cli.verify import verify
from bntool.errors import BntoolError

EXIT_OK, EXIT_GATE, EXIT_USAGE, EXIT_BUG, EXIT_INTERRUPTED = 0, 1, 2, 70, 130
EXIT_PIPE = 141  # what a shell calls a program that SIGPIPE ended

#: every command, in the order that --help shows them
COMMANDS: tuple[Callable[..., int | None], ...] = (
    insert,
    calibrate,
    replace,
    fold,
    inspect,
    verify,
    export,
    bench,
    study,
    demo,
)


def version(wanted: bool) -> None:
    if wanted:
        from bntool import __version__

        screen.say(f"bntool {__version__}")
        raise typer.Exit


def root(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Put batch normalisation into PyTorch models, fold it out again exactly, and measure what it does.

    A model is written as pkg.mod:factory, file.py:factory(depth=50), file.pt2, file.onnx, a bundle directory,
    or file.pt with --trust. Every command says more with --help.
    """
    context.default_map = settings.defaults(context.command.commands)  # type: ignore[attr-defined]  # a group


def build() -> typer.Typer:
    # plain help: it starts in half the time, and reads the same in a pipe
    names = {"help_option_names": ["-h", "--help"]}
    app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, context_settings=names)
    app.callback()(root)
    for command in COMMANDS:
        app.command(epilog=epilog(command.__name__))(command)
    return app


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line. Returns: the exit code, after printing at most one message about an error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = build()(arguments, prog_name="bntool", standalone_mode=False) or EXIT_OK
        return fail("interrupted", code) if code == EXIT_INTERRUPTED else code
    except typer.TyperException as problem:
        return fail(problem.format_message(), problem.exit_code)
    except BntoolError as problem:
        return fail(str(problem), problem.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return fail("interrupted", EXIT_INTERRUPTED)
    except SystemExit as left:  # what the parser makes of a reader of stdout that has seen enough
        if not isinstance(left.__context__, BrokenPipeError):
            raise
        return EXIT_PIPE
    except Exception as problem:
        what = f"{type(problem).__name__}: {problem}"
        return fail(f"bntool has a bug: {what}. Please report it with the output of --debug.", EXIT_BUG)


def fail(message: str, code: int) -> int:
    """One message on stderr; under --debug the traceback of the exception being handled comes before it."""
    if screen.settings.debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return code


def main() -> None:
    sys.exit(run())
