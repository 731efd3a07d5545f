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
    def ready(self) -> None: ...

    def time(self, call: Call, loops: int) -> float: ...


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


class CudaClock:
    """For a CUDA device: time between two events on the current stream, read after both have happened.

    With `flush_l2`, a buffer larger than the L2 cache is overwritten before each sample, so that no call
    finds its inputs there by luck.
    """

    def __init__(self, device: str, *, flush_l2: bool = False) -> None:
        import torch

        self.torch: Any = torch
        self.device = torch.device(device)
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        size = torch.cuda.get_device_properties(self.device).L2_cache_size
        self.scratch = torch.empty(2 * size, dtype=torch.int8, device=self.device) if flush_l2 else None

    def ready(self) -> None:
        if self.scratch is not None:
            self.scratch.zero_()
        self.torch.cuda.synchronize(self.device)

    def time(self, call: Call, loops: int) -> float:
        self.start.record()
        for _ in range(loops):
            call()
        self.end.record()
        self.end.synchronize()
        return float(self.start.elapsed_time(self.end)) / 1e3 / loops


class MpsClock(WallClock):
    """For Apple's GPU: the wall clock, with the device drained before it starts and before it stops."""

    def ready(self) -> None:
        import torch

        torch.mps.synchronize()

    def time(self, call: Call, loops: int) -> float:
        import torch

        start = time.perf_counter()
        for _ in range(loops):
            call()
        torch.mps.synchronize()
        return (time.perf_counter() - start) / loops


def clock_for(device: str, *, flush_l2: bool = False) -> Clock:
    """The clock that is right for work on `device` ("cpu", "cuda", "cuda:1", "mps")."""
    kind = device.split(":")[0]
    if kind == "cuda":
        return CudaClock(device, flush_l2=flush_l2)
    return MpsClock() if kind == "mps" else WallClock()
