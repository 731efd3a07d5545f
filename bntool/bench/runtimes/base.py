"""What a runtime is: it may turn a model into a file once, and opens it in every process that times it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from bntool.bench.clock import Clock
from bntool.bench.source import Source


class Session(Protocol):
    """A model that is ready to be timed."""

    clock: Clock

    def activate(self) -> None:
        """Make this session's process-wide settings (thread counts) hold; called before each sample,
        untimed.
        """

    def run(self) -> object:
        """One unit of work: a forward, or in train mode a forward, a backward and a step."""

    def outputs(self) -> list[NDArray[Any]]:
        """One forward's outputs, flattened to a list of arrays."""

    def facts(self) -> dict[str, Any]:
        """The deterministic figures, or none where this runtime hides them."""

    def profile(self) -> dict[str, float]:
        """Seconds per operator type in one call, or none where this runtime cannot say."""


class Runtime(Protocol):
    """`options` maps the option names that `model@runtime(option=value)` may use to what they mean."""

    name: str
    summary: str
    options: ClassVar[dict[str, str]]
    needs: tuple[str, ...]
    """Packages that must be importable."""
    trains: bool
    builds: bool
    """Whether it wants a file made once, before the workers that time it start."""

    def build(self, source: Source, folder: Path) -> Path:
        """Make the file that every worker will open."""

    def open(self, source: Source) -> Session: ...


def arrays_of(outputs: Any) -> list[NDArray[Any]]:
    """Outputs of any nesting as arrays; half precision widened, since NumPy has no bfloat16."""
    import torch
    from torch.utils import _pytree

    leaves = [leaf for leaf in _pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor | np.ndarray)]
    return [_array(leaf) for leaf in leaves]


def _array(leaf: Any) -> NDArray[Any]:
    if isinstance(leaf, np.ndarray):
        return leaf
    leaf = leaf.detach().cpu()
    return np.asarray(
        (leaf.float() if leaf.is_floating_point() and leaf.element_size() < 4 else leaf).numpy()
    )
