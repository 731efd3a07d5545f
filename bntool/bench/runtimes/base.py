"""What a runtime is: it may turn a model into a file once, and opens it in every process that times it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol

from bntool.bench.clock import Clock
from bntool.bench.source import Source
from bntool.sources.running import Outputs


class Session(Protocol):
    """A model that is ready to be timed."""

    clock: Clock

    def activate(self) -> None:
        """Make this session's process-wide settings (thread counts) hold; called before each sample,
        untimed.
        """

    def run(self) -> object:
        """One unit of work: a forward, or in train mode a forward, a backward and a step."""

    def outputs(self) -> Outputs:
        """One forward's outputs in eval mode, flattened to named arrays. Raises: RunError where there are
        none.
        """

    def facts(self) -> dict[str, Any]:
        """The deterministic figures, or none where this runtime hides them."""

    def profile(self) -> dict[str, float]:
        """Seconds per operator type in one call, or none where this runtime cannot say."""


class Runtime:
    """One way to run a model. `options` maps the names that `model@runtime(option=value)` may use to what
    they mean.
    """

    name: ClassVar[str]
    options: ClassVar[dict[str, str]]
    needs: ClassVar[tuple[str, ...]] = ("torch",)
    """Packages that must be importable."""
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    trains: ClassVar[bool] = False
    builds: ClassVar[bool] = False
    """Whether it wants a file made once, before the workers that time it start."""

    def build(self, source: Source, folder: Path) -> Path:
        """Make the file that every worker will open."""
        raise AssertionError(f"{self.name} has nothing to build")

    def open(self, source: Source) -> Session:
        raise NotImplementedError


class StaticThreads:
    """Of sessions whose thread count was settled when they were made."""

    def activate(self) -> None:
        return None
