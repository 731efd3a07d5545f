"""Write a model in the format that the target's suffix names: one row of FORMATS each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bntool.errors import RunError, UsageError
from bntool.sources.importing import said
from bntool.sources.inputs import InputSpec, as_call
from bntool.sources.kinds import kind_of
from bntool.sources.writing import beside, check_target

SUFFIXES = ".onnx, .pt2, .safetensors, .pt, or no suffix for a bundle directory"


def save(
    model: Any,
    path: str | Path,
    *,
    example_inputs: Any = None,
    inputs: Sequence[InputSpec] = (),
    force: bool = False,
) -> Path:
    """Write `model` to `path`: whole or not at all, and only over an existing target with `force`.

    A module goes to .pt2 and .onnx (which need `example_inputs`), .safetensors (weights, and the plan of what
    bntool changed), .pt (a pickle) or a directory (a bundle, which also notes the `inputs`); an exported
    program to .pt2; an ONNX model to .onnx. Returns: the path.

    Raises: UsageError when the target cannot take this model, RunError when writing it fails.
    """
    target = Path(path)
    check_kind(kind_of(model), target)
    with beside(target, force=force) as temporary:
        FORMATS[kind_of(model), target.suffix](model, temporary, example_inputs, inputs)
    return target


def check(model: Any, path: Path, *, example_inputs: Any = None, force: bool = False) -> None:
    """Whether `save` could work, before hours go into making the model. Raises: UsageError."""
    check_kind(kind_of(model), path)
    if path.suffix in (".pt2", ".onnx") and kind_of(model) == "module" and example_inputs is None:
        raise UsageError(f"a {path.suffix} file needs example inputs", where=str(path), next=NEED_INPUTS)
    check_target(path, force=force)


NEED_INPUTS = "Pass --input 1x3x224x224 (example_inputs=...)."


def check_kind(kind: str, path: Path) -> None:
    if (kind, path.suffix) not in FORMATS:
        able = ", ".join(suffix or "a directory" for k, suffix in FORMATS if k == kind)
        what = f"cannot write this model as {path.suffix or 'a bundle'}"
        raise UsageError(what, where=str(path), next=f"Use {able}.")


Writer = Callable[[Any, Path, Any, Sequence[InputSpec]], None]


def _bundle(model: Any, path: Path, example_inputs: Any, inputs: Sequence[InputSpec]) -> None:
    from bntool.sources import bundle

    bundle.write(model, path, inputs)


def _safetensors(model: Any, path: Path, example_inputs: Any, inputs: Sequence[InputSpec]) -> None:
    from bntool.edits import has_plan
    from bntool.sources import weights

    if not has_plan(model):
        what = "weights alone fit a model that a plan can make anew, and this has become one that none makes"
        raise UsageError(what, where=str(path), next="Write .pt2 or .onnx.")
    weights.write_safetensors(model, path)


def _pickle(model: Any, path: Path, example_inputs: Any, inputs: Sequence[InputSpec]) -> None:
    import torch

    try:
        torch.save(model, path)
    except Exception as problem:
        raise RunError(
            f"pickling it raised {said(problem)}", where=str(path), next="Use a bundle."
        ) from problem


def _program(model: Any, path: Path, example_inputs: Any, inputs: Sequence[InputSpec]) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(model, path)


def _exported(model: Any, path: Path, example_inputs: Any, inputs: Sequence[InputSpec]) -> None:
    import torch

    if example_inputs is None:
        raise UsageError("a .pt2 file needs example inputs", where=str(path), next=NEED_INPUTS)
    args, kwargs = as_call(example_inputs)
    try:
        program = torch.export.export(model, args, kwargs)
    except Exception as problem:
        raise RunError(
            f"torch.export raised {said(problem)}", where=str(path), next="Use a bundle."
        ) from problem
    _program(program, path, None, ())


def _onnx(model: Any, path: Path, example_inputs: Any, inputs: Sequence[InputSpec]) -> None:
    from bntool.export import export

    if example_inputs is None:
        raise UsageError("an .onnx file needs example inputs", where=str(path), next=NEED_INPUTS)
    export(model, path, example_inputs, fold=False)


def _onnx_model(model: Any, path: Path, example_inputs: Any, inputs: Sequence[InputSpec]) -> None:
    import onnx
    import onnx_ir

    from bntool.sources.onnx_file import model_bytes
    from bntool.sources.onnx_wire import INLINE_LIMIT_BYTES

    if isinstance(model, onnx.ModelProto):
        model = onnx_ir.from_proto(model)
    heavy = model_bytes(model) > INLINE_LIMIT_BYTES
    onnx_ir.save(model, path, external_data=f"{path.name}.data" if heavy else None)


FORMATS: dict[tuple[str, str], Writer] = {
    ("module", ".onnx"): _onnx,
    ("module", ".pt2"): _exported,
    ("module", ".safetensors"): _safetensors,
    ("module", ".pt"): _pickle,
    ("module", ""): _bundle,
    ("program", ".pt2"): _program,
    ("onnx", ".onnx"): _onnx_model,
}
