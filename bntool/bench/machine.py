"""Where a run happened: enough to say later whether two runs can be compared."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bntool.bench.contention import read


def describe() -> dict[str, Any]:
    """Hardware and system, without anything that names a person or a path."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def cpu_model() -> str:
    for line in read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    for line in read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


#: what must be the same for a stored ratio to mean anything
IDENTITY = ("cpu", "cores", "system")


def fingerprint(
    machine: Mapping[str, Any], versions: Mapping[str, str], conditions: Mapping[str, Any]
) -> str:
    """A short hash of hardware, library versions and conditions."""
    kept = {name: machine.get(name) for name in IDENTITY}
    text = json.dumps(
        [kept, dict(sorted(versions.items())), dict(sorted(conditions.items()))], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]
