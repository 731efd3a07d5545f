"""The options that commands share, and the wrapper that gives every command -q, -v and --debug."""

from __future__ import annotations

import functools
import inspect
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bntool.cli import screen
from bntool.errors import UsageError

if TYPE_CHECKING:
    from bntool.sources import Loaded

FORMS = "pkg.mod:factory, file.py:factory(depth=50), .pt2, .onnx, a bundle directory, or .pt with --trust."

ModelRef = Annotated[str, typer.Argument(metavar="MODEL", help=FORMS, show_default=False)]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="[NAME:]SHAPE[:DTYPE]", help="An input, as 1x3x224x224. Repeatable."),
]
Weights = Annotated[
    Path | None, typer.Option("--weights", metavar="FILE", help="Weights to load: .safetensors, or .pt.")
]
Trust = Annotated[bool, typer.Option("--trust", help="Run code that the model file carries (pickles).")]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", metavar="FILE", help=".onnx, .pt2, .safetensors, .pt, or a bundle directory."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def _tolerance(value: float | None) -> float | None:
    if value is not None and not value >= 0:
        raise typer.BadParameter("a tolerance is a number from 0 on, as 1e-5")
    return value


Tolerance = Annotated[
    float | None,
    typer.Option(
        "--tolerance",
        callback=_tolerance,
        help="Largest error allowed, relative to the largest output (default: from the dtype).",
    ),
]
Form = Annotated[
    Literal["module", "graph"],
    typer.Option("--form", help="module: your own class; graph: a torch.fx graph, which can express more."),
]
_DATA = typer.Option(
    "--data", metavar="DATA", help="Inputs: digits, a .npy, .npz or .safetensors file, or file.py:loader."
)
Data = Annotated[str, _DATA]
OptionalData = Annotated[str | None, _DATA]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Rows of the data to run at once.")]
Include = Annotated[
    list[str] | None, typer.Option("--include", metavar="GLOB", help="Only layers named so. Repeatable.")
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="GLOB", help="No layers named so. Repeatable.")
]

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Errors and results only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
_TALK = {"quiet": Quiet, "verbose": Verbose, "debug": Debug}


def command(run: Callable[..., int | None]) -> Callable[..., int | None]:
    """Add -q, -v and --debug to a command. What the command returns is its exit code (None: 0)."""

    @functools.wraps(run)
    def with_talk(**arguments: Any) -> int | None:
        talk = {name: arguments.pop(name) for name in _TALK}
        screen.settings.quiet, screen.settings.verbose = talk["quiet"], talk["verbose"]
        screen.settings.debug = talk["debug"]
        with screen.results_alone():
            return run(**arguments)

    signature = inspect.signature(run, eval_str=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [p.replace(kind=keyword) for p in signature.parameters.values()]
    talk = [inspect.Parameter(n, keyword, default=False, annotation=a) for n, a in _TALK.items()]
    with_talk.__signature__ = signature.replace(parameters=own + talk)  # type: ignore[attr-defined]  # typer reads it
    with_talk.__annotations__ = {p.name: p.annotation for p in own + talk}
    del with_talk.__wrapped__  # or type hints are read from `run`, without the three
    return with_talk


def open_model(
    ref: str, *, inputs: list[str] | None = None, weights: Path | None = None, trust: bool = False
) -> Loaded:
    """Load what the command line names, saying so with -v.

    A factory that draws its weights at random draws the same ones in every command, so that a model can be
    compared with what another command made of it.
    """
    from bntool.sources import open_model

    if not ref.endswith(".onnx"):
        import torch

        torch.manual_seed(0)
    loaded = open_model(ref, inputs=inputs, weights=weights, trust=trust)
    screen.detail(f"loaded {ref} ({loaded.kind})")
    return loaded


def open_module(
    ref: str, *, inputs: list[str] | None = None, weights: Path | None = None, trust: bool = False
) -> Loaded:
    """`open_model` for a verb that changes PyTorch modules. Raises: UsageError for another kind of model."""
    loaded = open_model(ref, inputs=inputs, weights=weights, trust=trust)
    if not loaded.is_module:
        what = f"this command works on PyTorch modules, and this is {KINDS[loaded.kind]}"
        raise UsageError(what, where=ref, next="Name the factory in Python that makes the model.")
    return loaded


KINDS = {"onnx": "an ONNX model", "pt2": "an exported program"}


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards, for what a dry run has to write in order to check it."""
    with tempfile.TemporaryDirectory(prefix="bntool-") as folder:
        yield Path(folder)
