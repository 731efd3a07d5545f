"""What the conductor and its workers say to each other: plain values that travel as JSON lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """One thing that is timed: a model under a runtime.

    `live` is the file that this harness itself pickled a live module into; `artefact` is what `build` made of
    the model for a runtime that wants a file (an ONNX model, a compiled package). `reference` marks the
    reference workload, which runs on inputs of its own.
    """

    name: str
    ref: str
    runtime: str = "eager"
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    trust: bool = False
    live: str | None = None
    artefact: str | None = None
    reference: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Candidate:
        return cls(**raw)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Conditions:
    """What holds for every candidate of a case.

    `inputs` is the file the shared inputs were saved to, `specs` are inputs as the command line writes them.
    `batch` repeats the inputs along dimension 0; `items` is how many samples one call then holds.
    `threads` 0 leaves the choice to the runtime. `mode` is "infer" or "train" (forward, backward, step).
    """

    inputs: str = ""
    specs: tuple[str, ...] = ()
    batch: int | None = None
    items: int | None = None
    dtype: str = ""
    device: str = "cpu"
    channels_last: bool = False
    mode: str = "infer"
    threads: int = 1
    seed: int = 0
    flush_l2: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Conditions:
        return cls(**{**raw, "specs": tuple(raw.get("specs", ()))})

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "specs": list(self.specs)}


@dataclass(frozen=True)
class Side:
    """Where a candidate's code lives: which Python runs it, in which directory. One process cannot be two
    sides.

    `home` is the working tree that `root` is another revision of.
    """

    python: str = ""
    root: str = ""
    home: str = ""
    label: str = ""


@dataclass(frozen=True)
class Sample:
    """One timed sample: so many calls of one candidate.

    `at_s` is when it began on the machine's monotonic clock, `took_s` what the clock said per call.
    `waited_s` is time, per call, in which a thread of the process was ready to run and had no CPU.
    Units: seconds; `faults` are minor page faults per call; `switches` are involuntary context switches.
    """

    candidate: int
    round: int
    at_s: float
    took_s: float
    waited_s: float
    faults: float
    switches: int

    def to_list(self) -> list[float]:
        return [
            self.candidate,
            self.round,
            self.at_s,
            self.took_s,
            self.waited_s,
            self.faults,
            self.switches,
        ]

    @classmethod
    def from_list(cls, raw: list[float]) -> Sample:
        return cls(int(raw[0]), int(raw[1]), raw[2], raw[3], raw[4], raw[5], int(raw[6]))
