"""Look at a model without changing it: what it is, and what folding would make of every norm in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bntool.fold import fold
from bntool.health import Health, health
from bntool.lazy import sized
from bntool.pooling.batches import example_call
from bntool.result import SCHEMA_VERSION, FoldReport
from bntool.sources.kinds import kind_of
from bntool.sources.onnx_file import model_bytes
from bntool.sources.opening import given


@dataclass(frozen=True)
class Size:
    """Units: `parameters` counts values (of an ONNX file all constants), `size_bytes` also the buffers'."""

    parameters: int
    size_bytes: int


@dataclass(frozen=True)
class Inspection:
    """`kind` is "module", "program" or "onnx"; `name` the class of a module; `fold` what folding would do.

    `health` is what is wrong with the norms, and how many values each has its statistics from; None unless
    the model is a module.
    """

    kind: str
    name: str
    size: Size
    fold: FoldReport
    health: Health | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            "name": self.name,
            **asdict(self.size),
            "fold": self.fold.to_dict(),
            "health": None if self.health is None else self.health.to_dict(),
        }


def inspect(model: Any, example_inputs: Any = None, *, batch_size: int | None = None) -> Inspection:
    """What `model` is, what `fold` would do to each of its norms, and what is wrong with them.

    `model` is a module, a torch.export program, an ONNX model, or a reference to one.
    batch_size: the batch the model is trained with, for the norms' n_eff; by default the example inputs'.
    The model stays as it is.

    Raises: UsageError for what is no model.
    """
    model, example_inputs = given(model, example_inputs)
    kind = kind_of(model)
    if kind == "module":
        model = sized(model, None if example_inputs is None else example_call(model, example_inputs))
    name = type(model).__name__ if kind == "module" else ""
    folding = fold(model, example_inputs, verify=False).report
    checks = health(model, example_inputs, batch_size=batch_size) if kind == "module" else None
    return Inspection(kind, name, size_of(model, kind), folding, checks)


def size_of(model: Any, kind: str) -> Size:
    if kind == "onnx":
        tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
        return Size(sum(t.size for t in tensors), model_bytes(model))
    state = model.state_dict.values() if kind == "program" else (*model.parameters(), *model.buffers())
    tensors = list({id(t): t for t in state}.values())
    own = tensors if kind == "program" else list(model.parameters())
    return Size(sum(t.numel() for t in own), sum(t.numel() * t.element_size() for t in tensors))
