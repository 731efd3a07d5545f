"""A bundle: a directory that holds a model without pickle.

    model.json           where the model comes from (factory, arguments), the plan of edits, input sizes
    weights.safetensors  parameters and buffers
    code/                a copy of the factory's file and of what it imports beside it

The code runs when the bundle is loaded: see `trusted`.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from bntool.edits import apply_plan, has_plan, plan_of
from bntool.errors import LoadError, UsageError
from bntool.lazy import give_known_sizes
from bntool.sources import importing, inputs, origin, python_ref, trusted, weights
from bntool.sources.base import Loaded, Source
from bntool.sources.refs import FileRef, PythonRef

SCHEMA_VERSION = 1


def write(model: nn.Module, folder: Path, specs: Sequence[inputs.InputSpec] = ()) -> None:
    """Raises: UsageError when it is not known which code built the model."""
    source = origin.of(model)
    if not has_plan(model):
        what = "a bundle holds a model that a plan can make anew, and this has become one that none makes"
        raise UsageError(what, where=str(folder), next="Write .pt2 or .onnx.")
    if source is None:
        what = "a bundle needs to know the factory that made the model, and it was not loaded by a reference"
        raise UsageError(what, where=str(folder), next="Load it with bntool.load, or write .pt2 or .onnx.")
    folder.mkdir()
    code = _copy_code(source, folder / "code")
    # literals of Python, which JSON would change: a tuple into a list
    kwargs = {name: repr(value) for name, value in source["kwargs"].items()}
    kept = {"place": source["place"], "factory": source["factory"], "kwargs": kwargs, "files": sorted(code)}
    document = {
        "schema_version": SCHEMA_VERSION,
        "source": kept,
        "inputs": [spec_text(spec) for spec in specs] or source["inputs"],
        "plan": plan_of(model),
    }
    (folder / "model.json").write_text(json.dumps(document, indent=2) + "\n")
    weights.write_safetensors(model, folder / "weights.safetensors")
    trusted.remember(trusted.digest(kept, code))


def spec_text(spec: inputs.InputSpec) -> str:
    return f"{spec.name}:{'x'.join(map(str, spec.shape))}:{spec.dtype}"


def _copy_code(source: dict[str, Any], folder: Path) -> dict[str, bytes]:
    """Copy the user's files below `folder` as they lay below their root. Returns: names, contents."""
    contents = {}
    for file in map(Path, source["files"]):
        name = file.relative_to(source["root"]).as_posix()
        contents[name] = file.read_bytes()
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(contents[name])
    return contents


def open_bundle(ref: FileRef, trust: bool) -> Loaded:
    """Raises: LoadError when the bundle is damaged, or came from elsewhere and is not trusted."""
    folder = ref.path
    document = read_document(folder)
    source, code = document["source"], read_code(folder, document["source"])
    fingerprint = trusted.digest(source, code)
    if not trust and not trusted.is_known(fingerprint):
        what = "it carries code and was not written on this account; it was not run"
        raise LoadError(what, where=str(folder), next="Look at its code, then pass --trust (trust=True).")
    model, default_inputs = _build(folder, source)
    specs = tuple(inputs.parse_input(text) for text in document["inputs"])
    if specs:
        default_inputs = lambda: inputs.torch_inputs(specs)  # noqa: E731  # one line, used twice
    give_known_sizes(model, default_inputs)
    model = apply_plan(model, document["plan"])
    tensors, _ = weights.read_safetensors(folder / "weights.safetensors")
    weights.fill(model, tensors, folder / "weights.safetensors", exact=True)
    origin.set_note(model, {**(origin.of(model) or {}), "inputs": document["inputs"]})
    return Loaded(str(ref), "bundle", model, default_inputs, path=folder)


def _build(folder: Path, source: dict[str, Any]) -> tuple[nn.Module, Any]:
    """The factory's model, from the code in the bundle or, where it carries none, from what is installed."""
    place = source["place"]
    if place.endswith(".py"):
        place = str(folder / "code" / place)
    ref = PythonRef(place, source["factory"], arguments(folder, source["kwargs"]))
    with importing.on_path(folder / "code"):
        model, module = python_ref.make(ref)
    origin.note(model, ref, module)
    return model, python_ref.example_inputs(module, ref)


def arguments(folder: Path, kwargs: dict[str, str]) -> dict[str, Any]:
    """Raises: LoadError."""
    try:
        return {name: ast.literal_eval(value) for name, value in kwargs.items()}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as problem:
        raise LoadError("the arguments in its model.json are damaged", where=str(folder)) from problem


def read_document(folder: Path) -> dict[str, Any]:
    """model.json, checked. Raises: LoadError."""
    try:
        document = json.loads((folder / "model.json").read_text())
        source = document["source"]
        texts = [source["place"], source["factory"], *source["files"], *document["inputs"]]
        right = document["schema_version"] == SCHEMA_VERSION and all(isinstance(t, str) for t in texts)
        right = right and isinstance(source["kwargs"], dict) and isinstance(document["plan"], dict)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
        what = "it is no bundle: model.json is missing or damaged"
        raise LoadError(what, where=str(folder), next="Name a folder that -o wrote.") from problem
    if not right:
        raise LoadError("its model.json is not one this bntool can read", where=str(folder))
    return document  # type: ignore[no-any-return]  # every field that is used was just checked


def read_code(folder: Path, source: dict[str, Any]) -> dict[str, bytes]:
    """The contents of every Python file in the bundle. Raises: LoadError when one is missing."""
    found = sorted((folder / "code").rglob("*.py"))
    code = {path.relative_to(folder / "code").as_posix(): path.read_bytes() for path in found}
    missing = [name for name in source["files"] if name not in code]
    if missing:
        raise LoadError(f"its code lacks {weights.few(missing)}", where=str(folder), next="Write it again.")
    return code


SOURCE = Source("bundle", lambda ref: isinstance(ref, FileRef) and ref.path.is_dir(), open_bundle)
