"""What a user names becomes candidates: `model@runtime(threads=1)`, a live module, a mapping of names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bntool.bench.protocol import Candidate
from bntool.bench.runtimes import ALIASES, BUILTIN, runtime
from bntool.errors import UsageError
from bntool.sources.refs import keywords

_AT = re.compile(r"(?P<ref>.+)@(?P<runtime>[A-Za-z_.]\w*(\.\w+)?)\s*(?P<options>\(.*\))?", re.S)
NAMES = {r.name for r in BUILTIN} | set(ALIASES)


def parse(text: str) -> Candidate:
    """`ref`, `ref@runtime` or `ref@runtime(option=value)`. Raises: UsageError."""
    match = _AT.fullmatch(text.strip())
    if match is None or (match["runtime"] not in NAMES and Path(text).exists()):
        return Candidate(text, text, default_runtime(text))
    known = runtime(match["runtime"])
    options = keywords(match["options"] or "()", text)
    unknown = sorted(set(options) - set(known.options))
    if unknown:
        names = ", ".join(known.options) or "none"
        raise UsageError(f"{known.name} has no option {unknown[0]!r}", where=text, next=f"It takes: {names}.")
    return Candidate(text, match["ref"], known.name, options)


def default_runtime(ref: str) -> str:
    return "onnx" if Path(ref).suffix == ".onnx" else "eager"


def under(candidate: Candidate, name: str) -> Candidate:
    """The same candidate under a runtime that was asked for by name (with options, perhaps)."""
    asked = parse(f"x@{name}")
    return replace(candidate, runtime=asked.runtime, options=asked.options | candidate.options)


def labelled(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Candidates with names that tell them apart: the second "net" becomes "net #2"."""
    counts: dict[str, int] = {}
    named = []
    for candidate in candidates:
        counts[candidate.name] = counts.get(candidate.name, 0) + 1
        again = counts[candidate.name]
        named.append(replace(candidate, name=f"{candidate.name} #{again}") if again > 1 else candidate)
    return tuple(named)


def from_models(models: Sequence[Any] | Mapping[str, Any], live: LiveFolder) -> list[Candidate]:
    """One candidate per model: a reference, or anything live that `live` can write to a file."""
    if isinstance(models, Mapping):
        return [replace(_candidate(model, live, name), name=name) for name, model in models.items()]
    if isinstance(models, str):
        raise UsageError("bench compares models: pass a list", next="bntool.bench([a, b]).")
    return [_candidate(model, live, f"{type(model).__name__} {i}") for i, model in enumerate(models)]


def _candidate(model: Any, live: LiveFolder, name: str) -> Candidate:
    if isinstance(model, str | Path):
        return parse(str(model))
    return live.candidate(model, name)


class LiveFolder:
    """Live models on their way to workers: each is written to a private folder that only this run reads.

    A module is pickled by `torch.save`, and unpickled only by workers that this process starts. A module
    whose class lives in `__main__`, or that cannot be pickled, stays here: `stranded` says so, and the case
    is then measured inside this process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models: dict[str, Any] = {}
        self.stranded: str = ""

    def candidate(self, model: Any, name: str) -> Candidate:
        import torch

        path = self.folder / f"live{len(self.models)}"
        self.models[str(path)] = model
        if isinstance(model, torch.nn.Module):
            self._write(model, path, name)
            return Candidate(name, name, live=str(path))
        if isinstance(model, torch.export.ExportedProgram):
            torch.export.save(model, path.with_suffix(".pt2"))
            return Candidate(name, str(path.with_suffix(".pt2")))
        return Candidate(name, str(self._write_onnx(model, path.with_suffix(".onnx"), name)), "onnx")

    def _write(self, module: Any, path: Path, name: str) -> None:
        import torch

        if any(type(m).__module__ == "__main__" for m in module.modules()):
            self.stranded = f"{name} is of a class defined in __main__, which no other process can import"
            return
        try:
            torch.save(module, path)
        except Exception as problem:
            self.stranded = f"{name} cannot be pickled ({type(problem).__name__}: {problem})"

    def _write_onnx(self, model: Any, path: Path, name: str) -> Path:
        import onnx
        import onnx_ir

        if isinstance(model, onnx.ModelProto):
            onnx.save(model, path)
        elif isinstance(model, onnx_ir.Model):
            onnx_ir.save(model, path)
        else:
            raise UsageError(
                f"cannot time a {type(model).__name__}", where=name, next="Pass a module or a reference."
            )
        return path
