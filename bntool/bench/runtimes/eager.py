"""Plain PyTorch: the module is called as a user calls it. On CUDA, `graph=True` replays a captured graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from bntool.bench.runtimes.base import Runtime, Session
from bntool.bench.source import Source
from bntool.errors import UsageError

if TYPE_CHECKING:
    from bntool.bench.runtimes.torch_session import TorchSession


class Eager(Runtime):
    name = "eager"
    options: ClassVar[dict[str, str]] = {
        "threads": "intra-op threads",
        "graph": "CUDA only: capture once, replay",
    }
    devices = ("cpu", "cuda", "mps")
    trains = True

    def open(self, source: Source) -> Session:
        from bntool.bench.runtimes.torch_session import TorchSession

        module = source.module()
        session = TorchSession(source, module)
        if source.candidate.options.get("graph"):
            session.run = captured(session)
        return session


def captured(session: TorchSession) -> Callable[[], object]:
    """Capture one call as a CUDA graph, after three calls on a side stream, and give back its replay.

    Source: PyTorch notes, CUDA semantics, "CUDA Graphs".
    """
    import torch

    if not session.device.startswith("cuda"):
        raise UsageError("graph=True needs a CUDA device", next="Add --device cuda, or leave it out.")
    with torch.cuda.device(session.device):  # streams are made on the current device
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                session.run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            session.run()
    return graph.replay
