"""Clocks of devices that this machine may not have, against devices that are made up.

What they show: in which order events, calls and waits come, on which stream, and what is made of the times.
What they cannot show: that a real device agrees.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bntool.bench.clock import CudaClock, MpsClock, WallClock, clock_for
from bntool.bench.runtimes.torch_session import spent_in


@dataclass
class Gpu:
    """A GPU whose work takes as long as it is told, some time after it was asked for."""

    log: list[str] = field(default_factory=list)
    now_ms: float = 0.0
    waited: bool = False

    def work(self) -> None:
        self.log.append("work")
        self.now_ms += 2.0

    def flush(self) -> None:
        self.log.append("flush")
        self.now_ms += 50.0

    def synchronize(self, device: object) -> None:
        self.log.append(f"synchronize {device}")

    def current_stream(self, device: object) -> str:
        return f"stream of {device}"

    def get_device_properties(self, device: object) -> SimpleNamespace:
        return SimpleNamespace(L2_cache_size=1 << 20)

    def Event(self, *, enable_timing: bool) -> GpuEvent:  # torch's name
        assert enable_timing
        return GpuEvent(self)


@dataclass
class GpuEvent:
    gpu: Gpu
    at_ms: float | None = None
    happened: bool = False

    def record(self, stream: str) -> None:
        self.gpu.log.append(f"record on {stream}")
        self.at_ms = self.gpu.now_ms

    def synchronize(self) -> None:
        self.gpu.log.append("wait for the last event")
        self.gpu.waited = True

    def elapsed_time(self, other: GpuEvent) -> float:
        assert self.gpu.waited, "read before the device was done"
        assert self.at_ms is not None
        assert other.at_ms is not None
        return other.at_ms - self.at_ms


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu()
    for name in ("synchronize", "current_stream", "get_device_properties", "Event"):
        monkeypatch.setattr(torch.cuda, name, getattr(made, name))
    scratch = SimpleNamespace(zero_=made.flush)

    def empty(size: int, **options: Any) -> SimpleNamespace:
        assert size >= 2 << 20, "smaller than the cache"
        assert options["device"] == torch.device("cuda:1")
        return scratch

    monkeypatch.setattr(torch, "empty", empty)
    return made


def test_calls_are_timed_between_two_events_on_the_devices_own_stream(gpu: Gpu) -> None:
    clock = CudaClock("cuda:1")
    clock.ready()
    assert clock.time(gpu.work, 3) == pytest.approx(2e-3)
    record = "record on stream of cuda:1"
    assert gpu.log == ["synchronize cuda:1", record, *["work"] * 3, record, "wait for the last event"]


def test_the_cache_is_flushed_before_every_call_and_not_timed(gpu: Gpu) -> None:
    clock = CudaClock("cuda:1", flush_l2=True)
    assert clock.time(gpu.work, 2) == pytest.approx(2e-3)
    record = "record on stream of cuda:1"
    assert gpu.log == [*["flush", record, "work", record] * 2, "wait for the last event"]


def test_mps_is_drained_before_and_inside_the_timed_part(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: log.append("drained"))
    clock = MpsClock()
    clock.ready()
    assert 0 < clock.time(lambda: log.append("work"), 2) < 1
    assert log == ["drained", "work", "work", "drained"]


def test_each_device_has_its_clock(gpu: Gpu) -> None:
    assert type(clock_for("cpu")) is WallClock
    assert type(clock_for("cuda:1")) is CudaClock
    assert type(clock_for("mps")) is MpsClock


def event(key: str, device: str, cpu: float, gpu: float) -> SimpleNamespace:
    kind = SimpleNamespace(name=device)
    return SimpleNamespace(key=key, device_type=kind, self_cpu_time_total=cpu, self_device_time_total=gpu)


EVENTS = [
    event("aten::conv", "CPU", 500.0, 30.0),
    event("aten::batch_norm", "CPU", 500.0, 10.0),
    event("some_conv_kernel", "CUDA", 0.0, 30.0),  # the same time once more
    event("bn_kernel", "CUDA", 0.0, 10.0),
]


def test_a_profile_counts_the_time_of_a_kernel_once() -> None:
    assert spent_in(EVENTS, 10, cuda=True) == {"conv": pytest.approx(3e-6), "batch_norm": pytest.approx(1e-6)}


def test_a_profile_of_a_replayed_graph_has_kernels_only() -> None:
    launch = event("cudaGraphLaunch", "CPU", 900.0, 0.0)
    assert list(spent_in([launch, *EVENTS[2:]], 10, cuda=True)) == ["some_conv_kernel", "bn_kernel"]


def test_a_profile_on_a_cpu_sums_what_has_the_same_name() -> None:
    both = [event("aten::detach", "CPU", 3.0, 0.0), event("detach", "CPU", 4.0, 0.0)]
    assert spent_in(both, 1, cuda=False) == {"detach": pytest.approx(7e-6)}
