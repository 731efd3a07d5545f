"""Workers that are no processes: for live modules that cannot be sent to another one."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from typing import Any

from bntool.bench.protocol import Candidate, Conditions
from bntool.bench.remote import CandidateError
from bntool.bench.worker import Worker
from bntool.errors import BntoolError
from bntool.sources import Loaded


class Here:
    """Answers a worker's commands inside this process, on copies of the live models."""

    def __init__(
        self, models: Mapping[str, Any], candidates: Mapping[int, Candidate], conditions: Conditions
    ) -> None:
        self.marker = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as this object
        self.threads = _threads()
        self.worker = Worker(self.marker.fileno())
        raw = {str(i): c.to_dict() for i, c in candidates.items()}
        self.worker.hello(raw, conditions.to_dict(), "", "", [])
        for index, candidate in candidates.items():
            if candidate.live:
                model = own_copy(models[candidate.live])
                self.worker.sources[index].loaded = Loaded(candidate.ref, "python", model)

    def ask(self, op: str, **args: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self.worker, op)(**args)
        except BntoolError as problem:
            raise CandidateError(str(problem), problem.exit_code, self.worker.running) from problem
        except Exception as problem:
            what = f"{type(problem).__name__}: {problem}"
            raise CandidateError(what, candidate=self.worker.running) from problem
        return answer

    def close(self) -> None:
        import torch

        torch.set_num_threads(self.threads)
        self.marker.close()


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def own_copy(model: Any) -> Any:
    """A copy in eval mode. What cannot be copied is used as it is: its mode is the caller's to set."""
    try:
        return copy.deepcopy(model).eval()
    except Exception:
        return model
