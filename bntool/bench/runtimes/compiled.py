"""torch.compile: the module is compiled at its first call, which cold start shows."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from bntool.bench.runtimes.base import Session
from bntool.bench.source import Source


class Compiled:
    name = "compile"
    summary = "torch.compile (Inductor)"
    options: ClassVar[dict[str, str]] = {
        "threads": "intra-op threads",
        "mode": "torch.compile's mode",
        "fullgraph": "refuse graph breaks",
    }
    needs: tuple[str, ...] = ("torch",)
    trains = True
    builds = False

    def build(self, source: Source, folder: Path) -> Path:
        raise AssertionError("nothing to build")

    def open(self, source: Source) -> Session:
        import torch

        from bntool.bench.runtimes.torch_session import TorchSession

        module, options = source.module(), source.candidate.options
        compiled = torch.compile(
            module, mode=options.get("mode"), fullgraph=bool(options.get("fullgraph", False)), dynamic=False
        )
        return TorchSession(source, compiled, lambda: module)
