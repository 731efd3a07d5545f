"""Look at a model without changing it: what it is, and what folding would make of every norm in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bntool.fold import fold
from bntool.result import SCHEMA_VERSION, FoldReport
from bntool.sources.saving import kind_of, model_bytes


@dataclass(frozen=True)
class Size:
    """Units: `parameters` counts values (of an ONNX file all constants), `size_bytes` also the buffers'."""

    parameters: int
    size_bytes: int


@dataclass(frozen=True)
class Inspection:
    """`kind` is "module", "program" or "onnx"; `name` the class of a module; `fold` what folding would do."""

    kind: str
    name: str
    size: Size
    fold: FoldReport

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            "name": self.name,
            **asdict(self.size),
            "fold": self.fold.to_dict(),
        }


def inspect(model: Any, example_inputs: Any = None) -> Inspection:
    """What `model` is and what `fold` would do to each of its norms. The model stays as it is.

    Raises: UsageError for what is no model.
    """
    kind = kind_of(model)
    name = type(model).__name__ if kind == "module" else ""
    return Inspection(kind, name, size_of(model, kind), fold(model, example_inputs, verify=False).report)


def size_of(model: Any, kind: str) -> Size:
    if kind == "onnx":
        tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
        return Size(sum(t.size for t in tensors), model_bytes(model))
    state = model.state_dict.values() if kind == "program" else (*model.parameters(), *model.buffers())
    tensors = list({id(t): t for t in state}.values())
    own = tensors if kind == "program" else list(model.parameters())
    return Size(sum(t.numel() for t in own), sum(t.numel() * t.element_size() for t in tensors))
