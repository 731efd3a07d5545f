"""A candidate as a runtime wants it: the model loaded, cast and placed, with the inputs that all share."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bntool.bench.protocol import Candidate, Conditions
from bntool.errors import LoadError, RunError, UsageError
from bntool.sources import Loaded, open_model
from bntool.sources.inputs import as_call
from bntool.sources.origin import installed
from bntool.sources.refs import PythonRef, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn


class Source:
    """One candidate under the conditions of its case. Everything is loaded on first use, from a fixed
    seed.
    """

    def __init__(self, candidate: Candidate, conditions: Conditions, root: str = "", home: str = "") -> None:
        self.candidate, self.root, self.home = candidate, root, home
        # the reference workload is the same everywhere: whatever is asked of the others
        self.conditions = Conditions(threads=conditions.threads) if candidate.reference else conditions

    @cached_property
    def loaded(self) -> Loaded:
        import torch

        torch.manual_seed(self.conditions.seed)
        if self.candidate.live:
            # written a moment ago by the process that started this worker, in a folder of its own
            module = received(self.candidate.live, self.candidate.name)
            return Loaded(self.candidate.ref, "python", module)
        with inside(self.root):
            loaded = open_model(
                self.candidate.ref,
                trust=self.candidate.trust,
                weights=self.candidate.weights,
                inputs=list(self.conditions.specs) or None,
            )
        if self.home and not self.candidate.reference:
            check_origin(self.candidate.ref, Path(self.root), Path(self.home))
        return loaded

    @property
    def onnx_file(self) -> Path | None:
        """The file itself where the candidate is an ONNX model: no need to load it to time it."""
        path = Path(self.root, self.candidate.ref)
        return path if path.suffix == ".onnx" and path.is_file() else None

    def module(self) -> nn.Module:
        """The model on the case's device, in its dtype, memory format and mode."""
        import torch

        if self.onnx_file:
            advice = f"Write {self.candidate.ref}@onnx."
            raise UsageError(f"an ONNX file does not run under {self.candidate.runtime}", next=advice)
        if self.conditions.device.startswith("cuda") and not torch.cuda.is_available():
            advice = "Leave --device out, or install a build for it."
            raise UsageError("this torch has no CUDA device", where="--device", next=advice)
        model: Any = self.loaded.model
        if not isinstance(model, torch.nn.Module):
            model = model.module()
        model = model.to(self.conditions.device)
        if self.conditions.dtype:
            model = model.to(getattr(torch, self.conditions.dtype))
        if self.conditions.channels_last:
            model = model.to(memory_format=torch.channels_last)
        return model  # type: ignore[no-any-return]

    @cached_property
    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs as positional and keyword arguments, on the device, in dtype, batch and memory
        format.
        """
        return as_call(_map(self._raw_inputs, self._place))

    @cached_property
    def _raw_inputs(self) -> Any:
        import torch

        if self.conditions.inputs:
            return torch.load(self.conditions.inputs, weights_only=True)
        loaded = self.loaded  # before the seed: making the model draws numbers too
        torch.manual_seed(self.conditions.seed)
        with inside(self.root):
            return _map(loaded.example_inputs(), torch.as_tensor)

    def _place(self, tensor: Tensor) -> Tensor:
        import torch

        if self.conditions.batch is not None:
            tensor = rebatch(tensor, self.conditions.batch)
        tensor = tensor.to(self.conditions.device)
        if self.conditions.dtype and tensor.is_floating_point():
            tensor = tensor.to(getattr(torch, self.conditions.dtype))
        if self.conditions.channels_last and tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    def save_inputs(self, path: str) -> int | None:
        """Write the inputs, before they are cast or placed, for every other candidate to use.

        Returns: samples in one call, by the first dimension of the first input.
        """
        import torch
        from torch.utils import _pytree

        torch.save(_map(self._raw_inputs, lambda t: t.detach().cpu()), path)
        shaped = [t for t in _pytree.tree_leaves(self.call) if isinstance(t, torch.Tensor) and t.dim()]
        return int(shaped[0].shape[0]) if shaped else None

    def artefact(self) -> Path:
        found = self.candidate.artefact
        if found is None:
            raise RunError("the model was not built for its runtime", where=self.candidate.name)
        return Path(found)


def received(path: str, name: str) -> Any:
    """Raises: LoadError when this process cannot make sense of what another one pickled."""
    import torch

    try:
        return torch.load(path, weights_only=False).eval()
    except Exception as problem:
        what = f"it cannot be sent to a worker process ({type(problem).__name__}: {problem})"
        raise LoadError(
            what, where=name, next="Define its class in a module that can be imported."
        ) from problem


def rebatch(tensor: Tensor, batch: int) -> Tensor:
    """The same samples over and over, `batch` of them along dimension 0."""
    import torch

    if tensor.dim() == 0:
        return tensor
    return tensor[torch.arange(batch) % tensor.shape[0]]


def _map(value: Any, change: Any) -> Any:
    """`change` applied to every tensor or array of an input structure."""
    if isinstance(value, Mapping):
        return {name: _map(part, change) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_map(part, change) for part in value)
    return change(value) if hasattr(value, "shape") else value


def check_origin(ref: str, root: Path, home: Path) -> None:
    """Whether a model of another revision was made by that revision's code.

    Raises: LoadError when it came from the working tree or from an installed copy: both sides would be the
    same code, and no change would ever be found.
    """
    named = parse(ref)
    files = {n: Path(f) for n, m in list(sys.modules.items()) if (f := getattr(m, "__file__", None))}
    own = files.get(named.place) if isinstance(named, PythonRef) and not named.is_file else None
    if own is not None and home not in own.parents and root not in own.parents:
        what = f"it was imported from {own}, which no revision changes"
        raise LoadError(what, where=ref, next="Leave --against out, or name a file of the repository.")
    leaked = [n for n, f in files.items() if home in f.parents and not installed(f) and not is_own(n)]
    if leaked:
        what = f"{leaked[0]} was imported from the working tree ({files[leaked[0]]}), not from the revision"
        advice = "Run it in the folder that has to be importable, without PYTHONPATH."
        raise LoadError(what, where=ref, next=advice)


def is_own(module: str) -> bool:
    """This program's modules are the same on both sides, even where it measures itself."""
    return module.partition(".")[0] in ("bntool", "__main__")


@contextmanager
def inside(folder: str) -> Iterator[None]:
    """Work in `folder` for a moment: a reference is relative to the side it belongs to."""
    if not folder:
        yield
        return
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
