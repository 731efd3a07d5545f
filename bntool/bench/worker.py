"""One worker process: holds candidates, times them in the order it is told. Reads and writes JSON lines.

Started as `python -m bntool.bench.worker MARKER`. What models print goes to stderr; answers go to the
stdout the process was started with. Before each sample the candidate's number is written to the file
MARKER, so that whoever started the process knows whom to blame if it dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from bntool.bench.clock import WallClock
from bntool.bench.contention import faults_and_switches, waited_s, waits
from bntool.bench.protocol import Candidate, Conditions, Sample
from bntool.bench.runtimes import runtime
from bntool.bench.runtimes.base import Session
from bntool.bench.sampling import in_time, warm_up
from bntool.bench.source import Source
from bntool.errors import BntoolError, RunError

#: from <sys/prctl.h>
PR_SET_PDEATHSIG = 1


class Worker:
    """The commands a worker understands: every public method is one; arguments and answers are plain JSON."""

    def __init__(self, marker: int) -> None:
        self.marker = marker
        self.running: int | None = None
        self.sources: dict[int, Source] = {}
        self.sessions: dict[int, Session] = {}

    def hello(
        self, candidates: dict[str, Any], conditions: dict[str, Any], root: str, home: str, path: list[str]
    ) -> dict[str, Any]:
        """Get to know the case; loads nothing. `path` is where the classes of live modules may be found."""
        sys.path += [folder for folder in path if folder not in sys.path]
        for folder in reversed([root, f"{root}/src"] if root else []):
            if os.path.isdir(folder):
                sys.path.insert(0, folder)
        shared = Conditions.from_dict(conditions)
        chosen = {int(i): Candidate.from_dict(c) for i, c in candidates.items()}
        self.sources = {i: Source(c, shared, root, home) for i, c in chosen.items()}
        return {"pid": os.getpid(), "python": platform.python_version()}

    def versions(self) -> dict[str, Any]:
        """Of what has been imported by now."""
        names = ("torch", "onnxruntime", "openvino", "numpy")
        found = {n: getattr(sys.modules[n], "__version__", "") for n in names if n in sys.modules}
        return {"python": platform.python_version(), **found}

    def overhead(self) -> dict[str, Any]:
        """What the clock itself costs. Units: seconds per sample, and per call of a sample of many calls."""
        clock = WallClock()

        def nothing() -> None:
            return None

        alone = sorted(clock.time(nothing, 1) for _ in range(1000))[500]
        return {"sample_s": alone, "call_s": clock.time(nothing, 100_000)}

    def save_inputs(self, candidate: int, path: str) -> dict[str, Any]:
        return {"items": self.sources[candidate].save_inputs(path)}

    def build(self, candidate: int, folder: str) -> dict[str, Any]:
        """Make the file that the runtime wants."""
        source = self.sources[candidate]
        start = time.perf_counter()
        path = runtime(source.candidate.runtime).build(source, Path(folder))
        return {"artefact": str(path), "build_s": time.perf_counter() - start}

    def open(self, candidate: int) -> dict[str, Any]:
        """Load the model and make the first call. Units: seconds."""
        self.mark(candidate)
        start = time.perf_counter()
        source = self.sources[candidate]
        session = runtime(source.candidate.runtime).open(source)
        opened = time.perf_counter()
        session.activate()
        session.run()
        session.clock.ready()
        self.sessions[candidate] = session
        return {"load_s": opened - start, "first_s": time.perf_counter() - opened}

    def warm(self, candidate: int) -> dict[str, Any]:
        """Run until steady, and say how that went."""
        self.mark(candidate)
        session = self.sessions[candidate]
        session.activate()
        session.clock.ready()
        return {"times_s": warm_up(lambda: session.clock.time(session.run, 1))}

    def sample(
        self, orders: list[list[int]], loops: dict[str, int], prime: bool = False, most_s: float = math.inf
    ) -> dict[str, Any]:
        """Time candidates round by round, until all rounds are done or `most_s` seconds have passed.

        `prime` makes one untimed call before each sample.
        """
        gc.collect()
        gc.disable()
        try:
            taken = [
                self.one(c, loops[str(c)], prime, number).to_list()
                for number, order in in_time(orders, most_s)
                for c in order
            ]
        finally:
            gc.enable()
        return {"samples": taken}

    def one(self, candidate: int, loops: int, prime: bool, number: int) -> Sample:
        self.mark(candidate)
        session = self.sessions[candidate]
        session.activate()
        if prime:
            session.run()
        session.clock.ready()
        before, (faults, switches), at = waits(), faults_and_switches(), time.monotonic()
        took = session.clock.time(session.run, loops)
        more_faults, more_switches = faults_and_switches()
        return Sample(
            candidate,
            number,
            at,
            took,
            waited_s(before, waits()) / loops,
            (more_faults - faults) / loops,
            more_switches - switches,
        )

    def peak(self, candidate: int) -> dict[str, Any]:
        """Highest resident memory so far, and how far one more forward rises above what is held. Units:
        bytes.
        """
        self.mark(candidate)
        device = self.sources[candidate].conditions.device
        so_far = status("VmHWM")
        forget_peak()
        held = status("VmRSS")
        self.sessions[candidate].run()
        rise = status("VmHWM") - held if held is not None and status("VmHWM") is not None else None
        return {"peak_rss_bytes": so_far, "forward_bytes": rise, **device_peak(device)}

    def outputs(self, candidate: int, path: str) -> dict[str, Any]:
        """Save one forward's outputs as an .npz of arrays 0, 1, ..., and say whether a second one gives the
        same.

        A model that draws random numbers draws the same ones in every candidate's first forward.
        """
        import numpy as np

        self.mark(candidate)
        session, why = self.sessions[candidate], ""
        found, again = [], []
        seed(self.sources[candidate].conditions.seed)
        try:
            found, again = session.outputs(), session.outputs()
        except RunError as problem:
            why = problem.what
        np.savez(path, **{str(i): a for i, (_, a) in enumerate(found)})  # type: ignore[arg-type]
        repeats = [a.tobytes() for _, a in found] == [a.tobytes() for _, a in again]
        return {"names": [name for name, _ in found], "why": why, "repeats": repeats}

    def facts(self, candidate: int) -> dict[str, Any]:
        self.mark(candidate)
        return self.sessions[candidate].facts()

    def profile(self, candidate: int) -> dict[str, Any]:
        self.mark(candidate)
        return {"seconds": self.sessions[candidate].profile()}

    def mark(self, candidate: int) -> None:
        self.running = candidate
        os.pwrite(self.marker, b"%8d" % candidate, 0)


def seed(number: int) -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(number)


def status(field: str) -> Any:
    """A line of /proc/self/status in bytes, or None where there is none."""
    with contextlib.suppress(OSError), open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return None


def forget_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def device_peak(device: str) -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda"):
        return {}
    return {"peak_device_bytes": int(torch.cuda.max_memory_allocated(device))}


COMMANDS = tuple(n for n, v in vars(Worker).items() if callable(v) and n not in ("__init__", "one", "mark"))


def answer(worker: Worker, line: str) -> dict[str, Any]:
    """What to send back for one request line; an exception becomes an answer, not the end."""
    request = json.loads(line)
    assert request["op"] in COMMANDS, request["op"]
    run: Callable[..., dict[str, Any]] = getattr(worker, request["op"])
    try:
        return {"ok": run(**request["args"])}
    except BntoolError as problem:
        return {"error": str(problem), "candidate": worker.running, "code": problem.exit_code}
    except (Exception, SystemExit) as problem:
        traceback.print_exc()
        return {"error": f"{type(problem).__name__}: {problem}"[:2000], "candidate": worker.running}


def serve(requests: TextIO, answers: TextIO, marker: int) -> None:
    worker = Worker(marker)
    for line in requests:
        answers.write(json.dumps(answer(worker, line)) + "\n")
        answers.flush()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    die_first()
    die_with_parent()
    serve(sys.stdin, answers, os.open(sys.argv[1], os.O_RDWR))


def die_first() -> None:
    """When memory runs out, the kernel should take this process and not the one that reports."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def die_with_parent() -> None:
    """A model that hangs must not outlive whoever started it, however that ended. (Linux only.)"""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
