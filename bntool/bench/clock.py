"""How long calls take: one clock per kind of device. Units: seconds.

A clock times `loops` calls as one sample and returns seconds per call. What it does before the sample
(`ready`) is not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

Call = Callable[[], object]


class Clock(Protocol):
    def ready(self) -> None:
        """Wait until the device has nothing left to do. Not timed."""

    def time(self, call: Call, loops: int) -> float:
        """Seconds per call."""


class WallClock:
    """For work that is over when the call returns: a CPU, by the machine's monotonic clock."""

    def ready(self) -> None:
        return None

    def time(self, call: Call, loops: int) -> float:
        repeat = range(loops)
        start = time.perf_counter()
        for _ in repeat:
            call()
        return (time.perf_counter() - start) / loops


#: bytes to overwrite where the driver does not say how large the cache is: more than any has
UNKNOWN_L2 = 256 << 20


class CudaClock:
    """For a CUDA device: time between events on that device's stream, read after all have happened.

    With `flush_l2`, a buffer larger than the L2 cache is overwritten before each call, outside its pair of
    events, so that no call finds its inputs there by luck (nor because the call before left them).
    Source: PyTorch notes, CUDA semantics, "Asynchronous execution"; torch.cuda.Event.
    """

    def __init__(self, device: str, *, flush_l2: bool = False) -> None:
        import torch

        self.cuda: Any = torch.cuda
        self.device = torch.device(device)
        size = 2 * torch.cuda.get_device_properties(self.device).L2_cache_size or UNKNOWN_L2
        self.scratch = torch.empty(size, dtype=torch.int8, device=self.device) if flush_l2 else None

    def ready(self) -> None:
        self.cuda.synchronize(self.device)

    def time(self, call: Call, loops: int) -> float:
        # an event belongs to the current device unless it is told a stream of another one
        stream = self.cuda.current_stream(self.device)
        spans = []
        for calls in [loops] if self.scratch is None else [1] * loops:
            if self.scratch is not None:
                self.scratch.zero_()
            spans.append(self.span(call, calls, stream))
        spans[-1][1].synchronize()
        return sum(float(start.elapsed_time(end)) for start, end in spans) / 1e3 / loops

    def span(self, call: Call, calls: int, stream: Any) -> tuple[Any, Any]:
        start, end = (self.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(stream)
        for _ in range(calls):
            call()
        end.record(stream)
        return start, end


class MpsClock(WallClock):
    """For Apple's GPU: the wall clock, with the device drained before it starts and before it stops."""

    def ready(self) -> None:
        import torch

        torch.mps.synchronize()

    def time(self, call: Call, loops: int) -> float:
        import torch

        def drained() -> None:
            for _ in range(loops):
                call()
            torch.mps.synchronize()

        return super().time(drained, 1) / loops


def clock_for(device: str, *, flush_l2: bool = False) -> Clock:
    """The clock that is right for work on `device` ("cpu", "cuda", "cuda:1", "mps")."""
    kind = device.split(":")[0]
    if kind == "cuda":
        return CudaClock(device, flush_l2=flush_l2)
    return MpsClock() if kind == "mps" else WallClock()
