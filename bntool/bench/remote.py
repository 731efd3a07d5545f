"""The conductor's end of a worker: starts the process, asks, and knows whom to blame when it dies."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import bntool
from bntool.bench.protocol import Candidate, Conditions, Side
from bntool.errors import RunError

#: glibc: never give memory back, never map a large block apart. Without this a forward may fault its
#: activations in again every time, or not, depending on where the heap happened to end.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
CANCELLED = 5.0


class CandidateError(Exception):
    """A candidate raised: the worker lives on. `candidate` was running then, or None where nobody was."""

    def __init__(self, message: str, code: int | None = None, candidate: int | None = None) -> None:
        self.message, self.code, self.candidate = message, code, candidate
        super().__init__(message)


class WorkerDied(Exception):  # what happened, not a kind of mistake
    """The process ended or stopped answering. `candidate` was running then, or None."""

    def __init__(self, message: str, candidate: int | None) -> None:
        self.message, self.candidate = message, candidate
        super().__init__(message)


class Remote(Protocol):
    """Somebody who answers a worker's commands: a process, or in tests a script."""

    def ask(self, op: str, **args: Any) -> dict[str, Any]: ...

    def close(self) -> None: ...


def environment(allocator: str, threads: int, side: Side) -> dict[str, str]:
    """The variables a worker starts with; `allocator` is "fixed" or "default"."""
    chosen = dict(os.environ) | {"PYTHONHASHSEED": "0"}
    if allocator == "fixed":
        chosen |= ALLOCATOR
    if threads:
        chosen |= {n: str(threads) for n in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    return chosen


class Process:
    """A worker process on one side."""

    def __init__(
        self,
        side: Side,
        candidates: Mapping[int, Candidate],
        conditions: Conditions,
        *,
        allocator: str = "fixed",
        timeout_s: float = 600.0,
    ) -> None:
        self.timeout_s = timeout_s
        self.busy = False
        self.folder = tempfile.TemporaryDirectory(prefix="bntool-worker-")
        self.marker = Path(self.folder.name, "running")
        self.marker.write_bytes(b"")
        self.errors = open(Path(self.folder.name, "stderr"), "w+b")  # noqa: SIM115  # lives as long as the process
        self.process = subprocess.Popen(
            [side.python or sys.executable, "-P", "-m", "bntool.bench.worker", str(self.marker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment(allocator, conditions.threads, side) | self.path(side),
        )
        try:
            self.greet(side, candidates, conditions)
        except BaseException:
            self.close()
            raise

    def greet(self, side: Side, candidates: Mapping[int, Candidate], conditions: Conditions) -> None:
        raw = {str(i): c.to_dict() for i, c in candidates.items()}
        path = importable() if any(c.live for c in candidates.values()) else []
        where = {"root": side.root, "home": side.home, "path": path}
        self.ask("hello", candidates=raw, conditions=conditions.to_dict(), **where)

    def path(self, side: Side) -> dict[str, str]:
        """How the worker finds bntool itself, and nothing else of this environment."""
        home = Path(bntool.__file__).resolve().parent
        link = Path(self.folder.name, "path", "bntool")
        link.parent.mkdir()
        link.symlink_to(home)
        rest = os.environ.get("PYTHONPATH", "")
        return {"PYTHONPATH": os.pathsep.join(filter(None, [str(link.parent), rest]))}

    def ask(self, op: str, **args: Any) -> dict[str, Any]:
        """Send one command and wait for its answer. Raises: CandidateError, WorkerDied."""
        assert self.process.stdin is not None
        self.busy = True
        try:
            self.process.stdin.write(json.dumps({"op": op, "args": args}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise self.death() from None
        reply = json.loads(self.line(op))
        self.busy = False
        if "ok" in reply:
            return dict(reply["ok"])
        raise CandidateError(reply["error"], reply.get("code"), reply.get("candidate"))

    def line(self, op: str) -> bytes:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], self.timeout_s)
        if not ready:
            self.process.kill()
            raise WorkerDied(f"no answer to {op!r} within {self.timeout_s:g} s", self.running())
        line = self.process.stdout.readline()
        if not line:
            raise self.death()
        return line

    def death(self) -> WorkerDied:
        code = self.process.wait()
        return WorkerDied(f"the process {ending(code)}{self.last_words()}", self.running())

    def running(self) -> int | None:
        text = self.marker.read_bytes().strip()
        return int(text) if text else None

    def last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read()[-4000:].decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def close(self) -> None:
        """End the process and leave nothing behind: one that is still at work is not waited for."""
        if self.busy:
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue
        try:
            self.process.wait(CANCELLED)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()
        self.folder.cleanup()


def importable() -> list[str]:
    """Where this process imports from: a live module's class has to be found again in the worker."""
    return [os.path.abspath(folder) for folder in sys.path]


def ending(code: int) -> str:
    """An exit status in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (" (often: out of memory)" if name == "SIGKILL" else "")


def check_python(python: str) -> None:
    """Raises: RunError when that interpreter cannot run a worker."""
    probe = "import numpy, torch"
    try:
        done = subprocess.run([python, "-c", probe], capture_output=True, text=True, timeout=120)
    except OSError as problem:
        raise RunError(
            f"cannot be started: {problem.strerror}", where=python, next="Pass --python PATH."
        ) from None
    if done.returncode:
        what = (done.stderr.strip().splitlines() or ["it failed"])[-1]
        raise RunError(
            f"it lacks what bench needs: {what}", where=python, next="Install torch and numpy there."
        )
