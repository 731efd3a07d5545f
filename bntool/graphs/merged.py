"""What every kind of graph asks of a merge before it writes it as one layer: its name and its type."""

from __future__ import annotations

from collections.abc import Container
from itertools import takewhile

from bntool.graphs.base import Mergeable, Node, Param


def merged_name(merge: Mergeable, taken: Container[str] = ()) -> str:
    """A name that is not `taken`, in the module that holds all the layers that are merged."""
    places = [n.where.split(".")[:-1] for n in merge.inside if n.kind in ("conv", "linear")]
    parent = ".".join(_shared(places)) if places else ""
    stem = f"{parent}.merged" if parent else "merged"
    name, number = stem, 0
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    return name


def _shared(paths: list[list[str]]) -> list[str]:
    """The components all paths begin with."""
    levels = zip(*paths, strict=False)
    return [level[0] for level in takewhile(lambda names: len(set(names)) == 1, levels)]


def weighted(merge: Mergeable) -> Node:
    """The first layer that is merged: its dtype goes to the new one, and what is particular to its format."""
    return next(n for n in merge.inside if n.kind in ("conv", "linear"))


def sample(merge: Mergeable) -> Param:
    """A weight that is merged: its dtype, device and gradient flag go to the new layer."""
    return weighted(merge).params["weight"]
