"""`.pt`: a whole pickled module. Unpickling can run anything, so only with trust."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from bntool.errors import LoadError
from bntool.sources.base import Loaded, Source, suffixed
from bntool.sources.importing import on_path, said
from bntool.sources.refs import FileRef


def open_pickle(ref: FileRef, trust: bool) -> Loaded:
    """Raises: LoadError when not trusted, damaged, or not a module."""
    if not trust:
        raise LoadError(refusal(ref.path), where=str(ref), next=advice(ref.path))
    try:
        with on_path(ref.path.resolve().parent, last=True), on_path(Path.cwd(), last=True):
            model = torch.load(ref.path, map_location="cpu", weights_only=False)
    except Exception as problem:
        what = f"unpickling it raised {said(problem)}"
        raise LoadError(
            what, where=str(ref), next="Is the code it was made with importable here?"
        ) from problem
    if not isinstance(model, nn.Module):
        raise LoadError(f"it holds a {type(model).__name__}, not a module", where=str(ref), next=AS_WEIGHTS)
    return Loaded(str(ref), "pickle", model, path=ref.path)


AS_WEIGHTS = "Name the factory, and pass the file to --weights."


def holds_weights(path: Path) -> bool:
    try:
        return isinstance(torch.load(path, map_location="meta", weights_only=True), dict)
    except Exception:
        return False


def refusal(path: Path) -> str:
    if holds_weights(path):
        return "it holds weights, not a model"
    return "it is a pickle, which can run any code when loaded; it was not loaded"


def advice(path: Path) -> str:
    return AS_WEIGHTS if holds_weights(path) else "Pass --trust (trust=True) if you know who made it."


SOURCE = Source("pickle", suffixed(".pt", ".pth", ".bin", ".ckpt"), open_pickle)
