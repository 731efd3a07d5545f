"""Where can a map go? A search over the graph for a set of absorptions that keeps the function what it is.

A goal is one obligation: `Make` a value become `map(value)`, or let a reader `Cope` with an input that has
lost the map. An op that a map passes turns a goal into goals further on; a node that takes it settles it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from bntool.algebra.absorbing import NORMS, UNLIKE, before, behind, takes_away
from bntool.algebra.affine import Blocked, ChannelAffine
from bntool.algebra.elementwise import line_down, line_up
from bntool.algebra.passing import PASSING
from bntool.algebra.rules import Down, Stay, Task, Up
from bntool.changes import Constants
from bntool.combinations import LINES, Combination, Reads, combination, combinations_below
from bntool.goals import Absorb, Cope, Found, Goal, Make, Rely, Settled, Together
from bntool.graphs.base import Graph, Node
from bntool.node_site import NodeSite
from bntool.showing import Showing

#: how many goals one search may look at before it gives up
BUDGET = 4000
AGAIN = Blocked("its scale and its shift would have to pass another call of it")
TOO_FAR = Blocked("its map would have to travel too far")


@dataclass
class Search:
    """One attempt. `folded`: norms that are gone, `own`: the one to go, `barred`: what must not change.

    A key of `barred` is an owner, or the pair of a norm and an owner that must not take this norm's map.
    `fixed` gives the map that a norm applies as it is.
    """

    constants: Constants
    showing: Showing
    folded: set[Hashable]
    own: Hashable
    barred: Mapping[Hashable, str]
    fixed: Callable[[Node], ChannelAffine | Blocked]
    whole: bool = True
    """Whether all of the norm's map goes one way. Otherwise none of it may go past another call of the norm,
    whose scale and shift it would have to take in between, when those are elsewhere already.
    """
    budget: int = BUDGET

    @property
    def graph(self) -> Graph:
        return self.constants.graph

    def run(self, goals: Sequence[Goal]) -> Found | Blocked:
        return self._settle(tuple(goals), Found())

    def _settle(self, goals: tuple[Goal, ...], found: Found) -> Found | Blocked:
        while goals:
            self.budget -= 1
            if self.budget < 0:
                return TOO_FAR
            ways = self._ways(goals[0], found)
            if isinstance(ways, Blocked):
                return ways
            if len(ways) > 1:
                return self._first(ways, goals[1:], found)
            goals = (*ways[0], *goals[1:])
        for reader, port in found.settled:  # made up for twice: by itself, then in the sum that reads it too
            return feeds(reader.inputs[port])
        waiting = next(iter(found.waiting.values()), None)  # a Blocked is falsy: `or` would lose it
        return found if waiting is None else waiting

    def _first(self, ways: list[list[Goal]], rest: tuple[Goal, ...], found: Found) -> Found | Blocked:
        refusal = TOO_FAR
        for number, way in enumerate(ways):
            result = self._settle((*way, *rest), found.copy())
            if not isinstance(result, Blocked):
                return result
            refusal = result if number == 0 else refusal
        return refusal

    def _ways(self, goal: Goal, found: Found) -> list[list[Goal]] | Blocked:
        if isinstance(goal, Absorb):
            found.absorbed.append(goal)
            return [[]]
        if isinstance(goal, Rely):
            found.relied.update(self.constants.owners(goal.constant))
            return [[]]
        if isinstance(goal, Settled):
            found.settled.add((goal.reader, goal.port))
            return [[]]
        if goal.map.is_identity:
            return [[]]
        if isinstance(goal, Together):
            return self._together(goal, found)
        return self._make(goal, found) if isinstance(goal, Make) else self._cope(goal, found)

    def _make(self, goal: Make, found: Found) -> list[list[Goal]] | Blocked:
        value = goal.value
        if value.watched or value.changed_by:
            return Blocked(value.watched or f"{place(value)} is changed in place by {value.changed_by}")
        rounds = found.wanted.setdefault(id(value), [])
        makes = next((r for r in rounds if all(m.operand != goal.operand for m in r)), None)
        if makes is None:
            rounds.append(makes := [])
        makes.append(goal)
        if not all(goal.map.equals(m.map) for m in makes):
            return Blocked(f"{place(value)} feeds several places that need different maps")
        if self._others(value, makes):
            found.waiting[id(value)] = feeds(value)
            return [[]]
        rounds.remove(makes)
        if not rounds:
            found.waiting.pop(id(value), None)
        return self._above(value, goal.map)

    def _others(self, value: Node, makes: list[Make]) -> list[Node]:
        """The readers that would see the map and have not asked for it, at each port by itself: `y * y`."""
        asked = [m.operand for m in makes]
        others = [(r, port) for r, port in value.users if (id(r), port) not in asked]
        shown = [(r, port) for r, port in others if self.showing.shows(r, port, makes[0].map)]
        return [r for r, port in shown if not _cancels_out(r, port, others)]

    def _gone(self, node: Node) -> bool:
        return node.owner is not None and (node.owner == self.own or node.owner in self.folded)

    def _is_apart(self, node: Node) -> bool:
        return node.owner == self.own and not self.whole

    def _above(self, node: Node, m: ChannelAffine) -> list[list[Goal]] | Blocked:
        if self._gone(node):
            return AGAIN if self._is_apart(node) else [[Make(node.inputs[0], m, node)]]
        if node.kind in PASSING:
            ways, whole = self._goals(node, PASSING[node.kind].up(self._site(node), m)), combination(node)
            return ways if whole is None else _either(ways, self._above_whole(whole, m))
        form = behind(node.kind, node.attrs, shapes(node), m)
        return self._past_norm(node, "after", m, self._taken(node, "after", form))

    def _above_whole(self, whole: Combination, m: ChannelAffine) -> list[list[Goal]] | Blocked:
        tasks = PASSING[whole.node.kind].up(self._site(whole.node), m)
        return self._goals(whole.node, tasks, whole.reads)

    def _cope(self, goal: Cope, found: Found) -> list[list[Goal]] | Blocked:
        node = goal.reader
        if (node, goal.port) in found.settled:
            found.settled.remove((node, goal.port))
            return [[]]
        if node.kind == "output":
            return Blocked(
                f"{place(node.inputs[goal.port])} is an output of {node.attrs.get('of') or 'the model'}"
            )
        if not self.showing.shows(node, goal.port, goal.map) or takes_away(node.kind, node.attrs, goal.map):
            return [[]]
        if self._gone(node):
            return AGAIN if self._is_apart(node) else self._below(node, goal.map)
        if node.kind in PASSING:
            ways = self._goals(node, PASSING[node.kind].down(self._site(node), goal.port, goal.map))
            if node.kind == "concat" and goal.map.shape[node.attrs["dim"]] == 1 and self._is_of_own(node):
                return _either(ways, [[Together(node, goal.port, goal.map)]])
            whole = next(combinations_below(node, goal.port), None) if node.kind in LINES else None
            return ways if whole is None else _either(ways, self._below_whole(whole, goal))
        form = before(node.kind, node.attrs, shapes(node), goal.map)
        return self._past_norm(node, "before", goal.map, self._taken(node, "before", form))

    def _together(self, goal: Together, found: Found) -> list[list[Goal]] | Blocked:
        """All parts of a value have lost the same map, or the others have yet to lose it."""
        node = goal.reader
        parts, key = found.parts.setdefault(id(node), {}), ("parts", id(node))
        if goal.port in parts or not all(goal.map.equals(part) for part in parts.values()):
            return at(node, UNLIKE)
        parts[goal.port] = goal.map
        found.waiting[key] = at(node, UNLIKE)
        if len(parts) < len(node.inputs):
            return [[]]
        del found.parts[id(node)], found.waiting[key]
        return self._below(node, goal.map)

    def _is_of_own(self, value: Node) -> bool:
        """Whether all of a value is the norm's, with nothing but what maps pass in between."""
        while value.owner != self.own:
            if value.kind == "concat":
                return all(map(self._is_of_own, value.inputs))
            if len(value.inputs) != 1 or not (self._gone(value) or value.kind in PASSING):
                return False
            value = value.inputs[0]
        return True

    def _below_whole(self, whole: Combination, goal: Cope) -> list[list[Goal]] | Blocked:
        """All reads of the value within the combination at once."""
        port = whole.port_of(goal.reader, goal.port)
        assert port is not None
        ways = self._goals(whole.node, PASSING[whole.node.kind].down(self._site(whole.node), port, goal.map))
        others = [Settled(*read) for read in whole.reads[port] if read != (goal.reader, goal.port)]
        return ways if isinstance(ways, Blocked) else [[*others, *way] for way in ways]

    def _site(self, node: Node) -> NodeSite:
        return NodeSite(self.graph, node, self.constants)

    def _goals(
        self, node: Node, ways: list[list[Task]] | Blocked, reads: Reads | None = None
    ) -> list[list[Goal]] | Blocked:
        """`reads`: where the inputs are really read, if not by `node` itself."""
        if isinstance(ways, Blocked):
            return at(node, ways)
        reads = tuple(((node, port),) for port in range(len(node.inputs))) if reads is None else reads
        result = []
        for way in ways:
            goals = self._goals_of(node, way, reads)
            if isinstance(goals, Blocked):
                return goals
            result.append(goals)
        return result

    def _goals_of(self, node: Node, way: list[Task], reads: Reads) -> list[Goal] | Blocked:
        goals: list[Goal] = []
        for task in way:
            match task:
                case Up(port, m):
                    goals.extend(Make(node.inputs[port], m, *read) for read in reads[port])
                case Stay(port):
                    goals.append(Rely(node.inputs[port]))
                case Down(m):
                    below = self._below(node, m)
                    if isinstance(below, Blocked):
                        return below
                    goals.extend(below[0])
        return goals

    def _below(self, node: Node, m: ChannelAffine) -> list[list[Goal]] | Blocked:
        """All readers of a node whose value has lost the map `m`."""
        if m.is_identity:
            return [[]]
        if node.watched or node.changed_by:
            return Blocked(node.watched or f"{place(node)} is changed in place by {node.changed_by}")
        return [[Cope(reader, port, m) for reader, port in node.users]]

    def _past_norm(
        self, node: Node, side: str, m: ChannelAffine, taken: list[list[Goal]] | Blocked
    ) -> list[list[Goal]] | Blocked:
        """Beside the ways in which a node takes a map, the one past a norm that stays what it is."""
        own = self.fixed(node) if is_norm(node) else taken
        if not isinstance(own, ChannelAffine):
            return taken
        site, line = self._site(node), (own.scale, own.shift)
        tasks = line_up(site, 0, m, line) if side == "after" else line_down(site, m, line)
        past = self._goals(node, tasks)
        past = past if isinstance(past, Blocked) else [[Rely(node), *way] for way in past]
        return _either(taken, past)

    def _taken(self, node: Node, side: str, form: ChannelAffine | Blocked) -> list[list[Goal]] | Blocked:
        if isinstance(form, Blocked):
            return at(node, form)
        refusal = self.barred.get(node.owner) or self.barred.get((self.own, node.owner))
        if refusal:
            return Blocked(refusal)
        return [[Absorb(node, side, form)]]


def _either(
    first: list[list[Goal]] | Blocked, second: list[list[Goal]] | Blocked
) -> list[list[Goal]] | Blocked:
    """The ways of both; the first one's refusal where neither has any."""
    if isinstance(second, Blocked):
        return first
    return second if isinstance(first, Blocked) else [*first, *second]


def _cancels_out(reader: Node, port: int, reads: Sequence[tuple[Node, int]]) -> bool:
    """Whether these reads of a value add up to none of it in the sum that the reader is part of."""
    whole = next(combinations_below(reader, port), None) if reader.kind in LINES else None
    place = None if whole is None else whole.port_of(reader, port)
    if whole is None or place is None or whole.node.attrs["factors"][place] != 0:
        return False
    return all(read in reads for read in whole.reads[place])


def shapes(node: Node) -> dict[str, tuple[int, ...]]:
    return {name: p.shape for name, p in node.params.items()}


def place(node: Node) -> str:
    return node.where or node.name


def at(node: Node, refusal: Blocked) -> Blocked:
    return Blocked(f"{place(node)}: {refusal.reason}")


def feeds(value: Node) -> Blocked:
    """Why a value that several read cannot take a map for one of them."""
    readers = list(dict.fromkeys(place(r) for r, _ in value.users))
    if len(value.users) == 1 or len(readers) == 1:
        return Blocked(f"the output of {place(value)} is read more than once by {readers[0]}")
    return Blocked(f"the output of {place(value)} feeds {len(readers)} places: {', '.join(readers)}")


def is_norm(node: Node) -> bool:
    return node.kind in NORMS
