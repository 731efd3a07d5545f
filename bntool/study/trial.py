"""A trial: one network trained once. Plain values, so that it runs anywhere and its result can be kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

#: what is measured during or after training, besides the scores
SIGNALS, LANDSCAPE, EXACT, SHIFT, COST = "signals", "landscape", "exact", "shift", "cost"
OPTIMIZERS = ("sgd", "momentum", "adam")


@dataclass(frozen=True)
class Trial:
    """An arm (norm, dropout, init, varied arguments), its hyperparameters and its seed.

    `examples` cuts the training part (0: all), `order` is "shuffled" or "sorted" (batches of one class),
    `measures` name extra measurements, `optimizer` is one of OPTIMIZERS. Trials that agree in everything
    share one result.
    Units: `rate` is the optimizer's step size; `steps` are updates.
    """

    norm: str
    seed: int
    rate: float = 0.1
    steps: int = 0
    batch_size: int = 32
    dropout: float = 0.0
    init: str = "default"
    order: str = "shuffled"
    examples: int = 0
    vary: tuple[tuple[str, Any], ...] = ()
    measures: tuple[str, ...] = ()
    optimizer: str = "sgd"

    @property
    def followed(self) -> bool:
        """Whether scores are taken along the way, which costs as much as a short training: only of ordinary
        training, where a claim asks how soon a score is reached.
        """
        return self.order == "shuffled" and not (self.measures or self.dropout or self.examples or self.vary)

    @property
    def key(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def at(self, **changes: Any) -> Trial:
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
