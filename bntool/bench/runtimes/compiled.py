"""torch.compile: the module is compiled at its first call, which cold start shows."""

from __future__ import annotations

from typing import ClassVar

from bntool.bench.runtimes.base import Runtime, Session
from bntool.bench.source import Source


class Compiled(Runtime):
    name = "compile"
    options: ClassVar[dict[str, str]] = {
        "threads": "intra-op threads",
        "mode": "torch.compile's mode",
        "fullgraph": "refuse graph breaks",
    }
    devices = ("cpu", "cuda", "mps")
    trains = True

    def open(self, source: Source) -> Session:
        import torch

        from bntool.bench.runtimes.torch_session import TorchSession

        module, options = source.module(), source.candidate.options
        compiled = torch.compile(
            module, mode=options.get("mode"), fullgraph=bool(options.get("fullgraph", False)), dynamic=False
        )
        return TorchSession(source, compiled, lambda: module)
