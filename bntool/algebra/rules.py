"""What a rule for passing maps is: it answers with tasks, alternatives of them, or a reason why not.

Each alternative is a list of tasks that together keep the function what it is; they are tried in order.
Downwards the input was `x = m(x')` and is now `x'`; upwards the output is wanted as `m(y)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bntool.algebra.affine import Array, Blocked, ChannelAffine
from bntool.algebra.moves import CONFLICT, Index, unbroadcast

NEED_SIZES = Blocked("its sizes are not known: give example inputs")
DATA_SIZES = Blocked("its sizes are not known: only running the model would tell")


@dataclass(frozen=True)
class Up:
    """Input `port` must become `map` of what it was."""

    port: int
    map: ChannelAffine


@dataclass(frozen=True)
class Down:
    """The output `y` is now a `y'` with `y = map(y')`: all who read it must make up for that."""

    map: ChannelAffine


@dataclass(frozen=True)
class Stay:
    """Input `port` is a constant whose value the maps were computed with: it must not change as well."""

    port: int


Task = Up | Down | Stay
Ways = list[list[Task]] | Blocked


class Site(Protocol):
    """An op as its rule sees it."""

    @property
    def attrs(self) -> Mapping[str, Any]: ...
    @property
    def arity(self) -> int: ...
    def constant(self, port: int) -> Array | None: ...
    def sizes(self, port: int) -> tuple[int, ...] | None: ...
    def out_sizes(self) -> tuple[int, ...] | None: ...
    def index(self) -> Index | Blocked: ...
    def read_by_others(self, port: int) -> bool: ...
    def is_square(self) -> bool:
        """Whether both operands are one value."""

    def unsized(self, port: int) -> Blocked:
        """Why the sizes of an input are not known."""


@dataclass(frozen=True)
class Passing:
    """A row: the two directions."""

    down: Callable[[Site, int, ChannelAffine], Ways]
    up: Callable[[Site, ChannelAffine], Ways]


def varies(m: ChannelAffine, dims: Sequence[int]) -> bool:
    return any(m.shape[d] != 1 for d in dims if -d <= len(m.shape))


def operand(site: Site, port: int, m: ChannelAffine) -> ChannelAffine | Blocked:
    sizes = site.sizes(port)
    return m if sizes is None else unbroadcast(m, sizes)


def result(site: Site, m: ChannelAffine) -> ChannelAffine:
    """A map on an operand as a map on the result, which may have more dimensions."""
    sizes = site.out_sizes()
    return m if sizes is None else m.expanded(len(sizes))


def ways_of(*ways: Sequence[tuple[int, ChannelAffine | Blocked]]) -> Ways:
    """The alternatives, each (port, map) upwards, of which no part is blocked."""
    open_ways: list[list[Task]] = []
    refusal = CONFLICT
    for way in ways:
        blocked = [m for _, m in way if isinstance(m, Blocked)]
        if blocked:
            refusal = blocked[0]
        else:
            open_ways.append([Up(port, m) for port, m in way if not isinstance(m, Blocked)])
    return open_ways or refusal


def ways_together(*each: Ways) -> Ways:
    """All alternatives of several answers in order; the last refusal where there is none."""
    open_ways = [way for ways in each if not isinstance(ways, Blocked) for way in ways]
    return open_ways or each[-1]
