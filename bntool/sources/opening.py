"""Open a reference: find who can read it, and hand back the model with all that is known about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bntool.errors import LoadError, UsageError
from bntool.sources import inputs as inputs_of
from bntool.sources import python_ref
from bntool.sources.inputs import InputSpec
from bntool.sources.refs import FORMS, FileRef, PythonRef, parse


@dataclass
class Loaded:
    """A model and where it came from.

    `kind` is "python", "pt2", "onnx", "bundle" or "pickle"; `model` is an nn.Module in eval mode (python,
    bundle, pickle), a torch.export.ExportedProgram (pt2) or an onnx_ir.Model (onnx). `default_inputs` makes
    the inputs that its file or signature names, if it names any.
    """

    ref: str
    kind: str
    model: Any
    default_inputs: Callable[[], Any] | None = None
    given: tuple[InputSpec, ...] = ()
    path: Path | None = None

    @property
    def has_inputs(self) -> bool:
        return bool(self.given) or self.default_inputs is not None

    def example_inputs(self) -> Any:
        """Inputs to call the model with: a tuple or a dict of tensors (of NumPy arrays for ONNX).

        Raises: UsageError when neither the command line nor the model's file names any.
        """
        if self.given:
            make = inputs_of.numpy_inputs if self.kind == "onnx" else inputs_of.torch_inputs
            return make(self.given)
        if self.default_inputs is None:
            advice = "Pass --input 1x3x224x224, or define example_inputs() beside the factory."
            raise UsageError("no example inputs are known", where=self.ref, next=advice)
        found = self.default_inputs()
        return found if isinstance(found, dict) else inputs_of.as_call(found)[0]


def load(ref: str, *, trust: bool = False, weights: str | Path | None = None) -> Any:
    """The model that `ref` names, ready to run: modules are in eval mode.

    Raises: UsageError when the reference makes no sense, LoadError when it cannot be loaded.
    """
    return open_model(ref, trust=trust, weights=weights).model


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
    loaded = _open_python(parsed) if isinstance(parsed, PythonRef) else _open_file(parsed)
    loaded.ref, loaded.given = str(ref), given
    if loaded.kind in ("python", "bundle", "pickle"):
        loaded.model.eval()
    return loaded


def _open_python(ref: PythonRef) -> Loaded:
    model, module = python_ref.make(ref)
    return Loaded(str(ref), "python", model, python_ref.example_inputs(module, ref))


def _open_file(ref: FileRef) -> Loaded:
    if ref.path.suffix == ".py":
        names = python_ref.names_in(ref.path)
        example = f"{ref.path}:{names[0] if names else 'factory'}"
        raise UsageError(
            "it does not say which function makes the model", where=str(ref), next=f"Write {example}."
        )
    if not ref.path.exists():
        raise LoadError("there is no such file", where=str(ref), next=f"A model is written as {FORMS}.")
    raise UsageError(
        "no reader for this kind of file", where=str(ref), next=f"A model is written as {FORMS}."
    )
