"""Weights without pickle: .safetensors with the plan in its metadata, or .pt read with weights_only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bntool.edits import apply_plan, plan_of
from bntool.errors import LoadError, UsageError

_PLAN = "bntool_plan"
_NEST = ("state_dict", "model_state_dict", "model", "weights")


def load_into(model: nn.Module, path: Path) -> nn.Module:
    """Give `model`, in place, the structure and the values that a weights file holds.

    Returns: the model; the graph that takes its place if the file's plan is of graph form.
    Raises: LoadError when the file is damaged or its tensors do not fit the model.
    """
    if not path.is_file():
        raise LoadError("there is no such file", where=str(path), next="Check the path given to --weights.")
    if path.suffix == ".safetensors":
        tensors, plan = read_safetensors(path)
        if plan is not None:
            model = apply_plan(model, plan)
        fill(model, tensors, path, exact=plan is not None)
    elif path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        fill(model, read_pickled(path), path)
    else:
        raise UsageError("weights end in .safetensors or .pt", where=str(path), next="Pass such a file.")
    return model


def write_safetensors(model: nn.Module, path: Path, notes: Mapping[str, str] | None = None) -> None:
    """The parameters and buffers of the state dict, tied ones once, with the plan in the metadata."""
    from safetensors.torch import save_file

    metadata = {"format": "pt", _PLAN: json.dumps(plan_of(model)), **(notes or {})}
    path.touch()
    usual = path.stat().st_mode
    save_file(distinct(model), path, metadata=metadata)
    path.chmod(usual)  # safetensors makes files that only their owner can read


def distinct(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with each tensor under its first name only."""
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            advice = "Write a .pt2 or .onnx file."
            raise UsageError("its extra state is no tensor and cannot be saved", where=name, next=advice)
        if id(value) not in seen:
            seen.add(id(value))
            kept[name] = value.detach().cpu().contiguous().clone()
    return kept


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors, and the plan when bntool wrote the file."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        return tensors, json.loads(metadata[_PLAN]) if _PLAN in metadata else None
    except Exception as problem:
        raise damaged(path, problem) from problem


def read_pickled(path: Path) -> Mapping[str, Tensor]:
    """A state dict, also as trainers wrap it: {"state_dict": ...}, "module." before each name."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:
        raise damaged(path, problem) from problem
    while isinstance(found, Mapping) and not _is_state(found):
        inner = next((found[key] for key in _NEST if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping) or not _is_state(found):
        raise LoadError("it holds no state dict", where=str(path), next="Save model.state_dict().")
    if all(name.startswith("module.") for name in found):
        return {name.removeprefix("module."): value for name, value in found.items()}
    return found


def _is_state(found: Mapping[Any, Any]) -> bool:
    return bool(found) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())


def damaged(path: Path, problem: Exception) -> LoadError:
    said = (" ".join(str(problem).split()) or type(problem).__name__)[:120]
    return LoadError(f"it cannot be read as weights: {said}", where=str(path), next="Save it again.")


def fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, *, exact: bool = False) -> None:
    """Copy every value in; `exact` also takes over the dtype of the file.

    Raises: LoadError when names or shapes differ.
    """
    own = model.state_dict(keep_vars=True)
    missing, unexpected = missing_names(own, tensors), [name for name in tensors if name not in own]
    if lazy := [n for n, t in own.items() if is_lazy(t)]:
        what = f"{few(lazy)} of the model have no size yet, and no inputs that would give them one are known"
        raise LoadError(what, where=str(path), next="Pass --input, or define example_inputs().")
    shapes = [n for n, t in tensors.items() if n in own and own[n].shape != t.shape]
    if missing or unexpected or shapes:
        raise LoadError(misfit(missing, unexpected, shapes), where=str(path), next=_ADVICE)
    for name, value in tensors.items():
        if exact and own[name].dtype != value.dtype:
            own[name].data = own[name].data.to(value.dtype)
    model.load_state_dict(dict(tensors), strict=False)


_ADVICE = "Name the factory, with the arguments, that these weights were saved from."


def missing_names(own: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[str]:
    """Names the file lacks; a tied tensor is there when any of its names is."""
    given = {id(own[name]) for name in tensors if name in own}
    return [name for name, value in own.items() if id(value) not in given]


def misfit(missing: list[str], unexpected: list[str], shapes: list[str]) -> str:
    """Why the names do not fit, shortly."""
    kinds = (("lacks", missing), ("has no place for", unexpected), ("has other shapes for", shapes))
    return "it " + "; it ".join(f"{verb} {few(names)}" for verb, names in kinds if names)


def few(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
