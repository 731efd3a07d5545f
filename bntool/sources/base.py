"""What a kind of model source is, and what opening one gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bntool.errors import UsageError
from bntool.sources import inputs as inputs_of
from bntool.sources.inputs import InputSpec
from bntool.sources.refs import FileRef, PythonRef


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
    def is_module(self) -> bool:
        return self.kind in ("python", "bundle", "pickle")

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


@dataclass(frozen=True)
class Source:
    """One kind of source: `reads` says whether a reference is of this kind, `open` loads it (ref, trust)."""

    kind: str
    reads: Callable[[PythonRef | FileRef], bool]
    open: Callable[[Any, bool], Loaded]


def suffixed(*suffixes: str) -> Callable[[PythonRef | FileRef], bool]:
    """Reads files whose names end so."""
    return lambda ref: isinstance(ref, FileRef) and ref.path.suffix.lower() in suffixes
