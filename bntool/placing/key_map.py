"""Which state-dict key became which when modules were moved, found by the tensors themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def key_owners(model: nn.Module) -> dict[str, int]:
    """Every key of the model's state dict and the identity of its tensor."""
    return {k: id(v) for k, v in model.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}


def moved_keys(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, str | None]:
    """Old key -> new key, None for a tensor that is gone. Both owners must be of the same living tensors."""
    places: dict[int, list[str]] = defaultdict(list)
    for key, owner in after.items():
        places[owner].append(key)
    return {old: _take(places[owner], old) for old, owner in before.items()}


def _take(places: list[str], old: str) -> str | None:
    """The next place of a tensor: its old name where that still stands (tied tensors have several)."""
    if not places:
        return None
    return places.pop(places.index(old) if old in places else 0)


def renamed(state: Mapping[str, Any], keys: Mapping[str, str | None]) -> dict[str, Any]:
    """A checkpoint with old keys under the new ones; keys without a new place are left out."""
    return {new: value for old, value in state.items() if (new := keys.get(old, old)) is not None}
