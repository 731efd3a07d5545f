"""Evidence of who else wanted this machine: read from /proc, absent where the system has no such file."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

PROC = Path("/proc")


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def waits() -> dict[str, int]:
    """Nanoseconds that each thread of this process was ready to run and had no CPU, so far."""
    files = PROC.glob("self/task/*/schedstat")
    return {file.parent.name: int(text.split()[1]) for file in files if (text := read(file))}


def waited_s(before: Mapping[str, int], after: Mapping[str, int]) -> float:
    """Seconds between two moments that the thread waited that waited most: the others wait for it."""
    return max((ns - before.get(thread, 0) for thread, ns in after.items()), default=0) / 1e9


def faults_and_switches() -> tuple[int, int]:
    """Minor page faults and involuntary context switches of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt, usage.ru_nivcsw


@dataclass(frozen=True)
class Moment:
    """Counters of the whole machine at one moment. Units: jiffies, microseconds, MHz; None where not
    known.
    """

    steal: int
    total: int
    stalled_us: int | None
    load: float
    mhz: float | None

    @classmethod
    def now(cls) -> Moment:
        fields = [int(n) for n in read(PROC / "stat").partition("\n")[0].split()[1:9]]
        steal = fields[7] if len(fields) == 8 else 0
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        return cls(steal, sum(fields), stalled_us(), load, frequency_mhz())


def stalled_us() -> int | None:
    """Microseconds in which some task waited for a CPU (pressure-stall information)."""
    for line in read(PROC / "pressure" / "cpu").splitlines():
        if line.startswith("some"):
            return int(line.rpartition("total=")[2])
    return None


def frequency_mhz() -> float | None:
    speeds = [
        float(t) / 1e3
        for t in map(read, Path("/sys/devices/system/cpu").glob("cpu*/cpufreq/scaling_cur_freq"))
        if t
    ]
    if not speeds:
        speeds = [
            float(line.split(":")[1])
            for line in read(PROC / "cpuinfo").splitlines()
            if line.startswith("cpu MHz")
        ]
    return float(np.mean(speeds)) if speeds else None


@dataclass(frozen=True)
class Contention:
    """What one replicate went through. Shares are of its wall time, 0 to 1; None where the system does not
    say.

    `steal` is CPU time a hypervisor gave to others, `pressure` the share of time in which something waited
    for a CPU, `waited` the share of sampled time in which this process did, `switches` its involuntary
    switches.
    """

    seconds: float
    steal: float | None
    pressure: float | None
    waited: float
    switches: int
    load: float
    mhz: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def between(before: Moment, after: Moment, seconds: float, *, waited: float, switches: int) -> Contention:
    total = after.total - before.total
    steal = (after.steal - before.steal) / total if total else None
    pressure = None
    if before.stalled_us is not None and after.stalled_us is not None:
        pressure = min(1.0, (after.stalled_us - before.stalled_us) / 1e6 / max(seconds, 1e-9))
    return Contention(seconds, steal, pressure, waited, switches, after.load, after.mhz)


def in_words(seen: Sequence[Contention]) -> str:
    """One sentence on what the replicates went through, or "" where the machine was quiet."""
    if not seen:
        return ""
    parts = []
    waited = float(np.mean([c.waited for c in seen]))
    pressure = [c.pressure for c in seen if c.pressure is not None]
    steal = [c.steal for c in seen if c.steal is not None]
    if waited > 0.02:
        parts.append(f"the samples waited {waited:.0%} of their time for a CPU")
    if pressure and np.mean(pressure) > 0.1:
        parts.append(f"some task waited for a CPU {np.mean(pressure):.0%} of the time")
    if steal and np.mean(steal) > 0.01:
        parts.append(f"the hypervisor took {np.mean(steal):.0%}")
    return "; ".join(parts)
