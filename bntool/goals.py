"""What a search for the place of a map has to do, one obligation each, and what it has settled so far."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from bntool.algebra.affine import Blocked, ChannelAffine
from bntool.graphs.base import Node


@dataclass(frozen=True, eq=False)
class Make:
    """`value` must become `map(value)` for this reader, which reads it at `port`."""

    value: Node
    map: ChannelAffine
    reader: Node
    port: int = 0

    @property
    def operand(self) -> tuple[int, int]:
        return id(self.reader), self.port


@dataclass(frozen=True, eq=False)
class Cope:
    """What `reader` gets at `port` was `map(x)` and is now `x`."""

    reader: Node
    port: int
    map: ChannelAffine


@dataclass(frozen=True, eq=False)
class Absorb:
    """`node` takes a map into its parameters; `form` is the map as they see it."""

    node: Node
    side: str
    form: ChannelAffine


@dataclass(frozen=True, eq=False)
class Rely:
    """The parameters of which `constant` is computed, or which it has as a norm, must stay as they are."""

    constant: Node


@dataclass(frozen=True, eq=False)
class Settled:
    """What `reader` gets at `port` is made up for together with other reads: its `Cope` is done."""

    reader: Node
    port: int


@dataclass(frozen=True, eq=False)
class Together:
    """What `reader`, which puts values together, gets at `port` was `map(x)`, as it was at all others."""

    reader: Node
    port: int
    map: ChannelAffine


Goal = Make | Cope | Absorb | Rely | Settled | Together


@dataclass
class Found:
    """What a search has settled so far."""

    absorbed: list[Absorb] = field(default_factory=list)
    wanted: dict[int, list[list[Make]]] = field(default_factory=dict)
    """What is asked of values, in rounds: in each every reader asks once, and then the map goes up."""
    waiting: dict[Hashable, Blocked] = field(default_factory=dict)
    """Values of which some readers have not asked for the map yet, or that have not lost it in all parts."""
    relied: set[Hashable] = field(default_factory=set)
    """Owners of constants whose values maps were computed with: they must stay as they are."""
    settled: set[tuple[Node, int]] = field(default_factory=set)
    """Operands that are made up for before their turn comes."""
    parts: dict[int, dict[int, ChannelAffine]] = field(default_factory=dict)
    """The maps that parts of values have lost, by the value's id and by port."""

    def copy(self) -> Found:
        wanted = {key: [list(makes) for makes in rounds] for key, rounds in self.wanted.items()}
        parts = {key: dict(ports) for key, ports in self.parts.items()}
        rest = dict(self.waiting), set(self.relied), set(self.settled), parts
        return Found(list(self.absorbed), wanted, *rest)
