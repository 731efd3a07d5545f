"""What a report of insert says of one norm."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InsertEntry:
    """One norm that was put in: its qualified name, the layer it belongs to, its kind, n_eff = N * H * W.

    `bias` is "dropped" (into the norm), "kept" or "none"; `dead_channels` never vary on the data.
    """

    name: str
    layer: str
    norm: str
    channels: int
    n_eff: int
    why: str = ""
    bias: str = "none"
    dead_channels: int = 0
