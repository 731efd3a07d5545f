"""Open a reference: find the source that reads it, and hand back the model with what is known about it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bntool.errors import LoadError, UsageError
from bntool.sources import inputs as inputs_of
from bntool.sources.base import Loaded, Source
from bntool.sources.kinds import kind_of
from bntool.sources.refs import FORMS, FileRef, PythonRef, parse

#: the modules that hold a SOURCE, first match first; imported when asked, as .onnx must not import torch
BUILTIN = ("python_ref", "onnx_file", "pt2", "bundle", "pickle_file")


def load(ref: str, *, trust: bool = False, weights: str | Path | None = None) -> Any:
    """The model that `ref` names, ready to run: modules are in eval mode.

    Raises: UsageError when the reference makes no sense, LoadError when it cannot be loaded.
    """
    return open_model(ref, trust=trust, weights=weights).model


def given(model: Any, example_inputs: Any = None) -> tuple[Any, Any]:
    """A model as a verb is given it, maybe by reference; for a module without example inputs its file's own.

    Raises: as `load`.
    """
    if not isinstance(model, str | Path):
        return model, example_inputs
    loaded = open_model(str(model))
    if example_inputs is None and loaded.is_module and loaded.has_inputs:
        example_inputs = loaded.example_inputs()
    return loaded.model, example_inputs


def given_module(model: Any, example_inputs: Any, verb: str) -> tuple[Any, Any]:
    """`given` for a verb that changes PyTorch modules. Raises: UsageError for another kind of model."""
    model, example_inputs = given(model, example_inputs)
    words = {"onnx": "an ONNX model", "program": "an exported program"}
    if (word := words.get(kind_of(model))) is not None:
        advice = "Give the module that it was exported from."
        raise UsageError(f"it works on PyTorch modules, and this is {word}", where=verb, next=advice)
    return model, example_inputs


def open_model(
    ref: str,
    *,
    trust: bool = False,
    weights: str | Path | None = None,
    inputs: Sequence[str] | None = None,
) -> Loaded:
    """The model that `ref` names with its example inputs; `inputs` are specs as `--input` takes them."""
    given = tuple(inputs_of.parse_input(text) for text in inputs or ())
    parsed = parse(str(ref))
    loaded = source_of(parsed).open(parsed, trust)
    loaded.ref, loaded.given = str(ref), given
    if loaded.kind == "python":
        from bntool.lazy import give_known_sizes

        give_known_sizes(loaded.model, loaded.example_inputs if loaded.has_inputs else None)
    if weights is not None:
        _load_weights(loaded, Path(weights))
    if loaded.is_module:
        loaded.model.eval()
    return loaded


def source_of(ref: PythonRef | FileRef) -> Source:
    """Raises: LoadError when there is no such file, UsageError when nothing reads this kind."""
    if isinstance(ref, FileRef):
        _check_file(ref)
    for name in BUILTIN:
        if (isinstance(ref, PythonRef)) != (name == "python_ref"):
            continue
        source: Source = import_module(f"bntool.sources.{name}").SOURCE
        if source.reads(ref):
            return source
    raise UsageError(
        "no reader for this kind of file", where=str(ref), next=f"A model is written as {FORMS}."
    )


def _check_file(ref: FileRef) -> None:
    if not ref.path.exists():
        raise LoadError("there is no such file", where=str(ref), next=f"A model is written as {FORMS}.")
    if ref.path.suffix == ".py":
        from bntool.sources.python_ref import names_in

        names = names_in(ref.path) or ["factory"]
        advice = f"Write {ref.path}:{names[-1]} (it defines {', '.join(names[:8])})."
        raise UsageError("it does not say which function makes the model", where=str(ref), next=advice)
    if ref.path.suffix == ".safetensors":
        advice = f"Name the factory, and pass --weights {ref}."
        raise UsageError(
            "it holds weights and a plan, but not the code of a model", where=str(ref), next=advice
        )


def _load_weights(loaded: Loaded, path: Path) -> None:
    from bntool.sources.weights import load_into

    if not loaded.is_module:
        raise UsageError("--weights goes with a model made by Python", where=loaded.ref, next="Leave it out.")
    loaded.model = load_into(loaded.model, path)
