"""A graph and the tables of the algebra -> what every norm becomes. Pure: changes nothing.

The unit is a norm with all its calls, and a parameter owner with all its calls: a fold is valid only if every
call of every owner it touches takes the same map, and nothing else reads the parameters that change.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bntool.algebra.affine import Array, Blocked, ChannelAffine
from bntool.algebra.elementwise import LINES
from bntool.algebra.moves import fit_together
from bntool.algebra.norms import norm_map
from bntool.attempts import ATTEMPTS, WHOLE
from bntool.changes import Change, Constants, same
from bntool.globs import matches
from bntool.goals import Absorb, Found, Goal
from bntool.graphs.base import Graph, Node, Param
from bntool.memory import Memory
from bntool.rewriting import OutOfRange
from bntool.search import Search, is_norm, place
from bntool.showing import Showing


@dataclass(eq=False)
class Norm:
    """One norm: its calls share their parameters."""

    names: tuple[str, ...]
    calls: list[Node]
    map: ChannelAffine | Blocked

    @property
    def owner(self) -> Hashable:
        return self.calls[0].owner


@dataclass(frozen=True, eq=False)
class Step:
    """One norm that folds: which owners take its map, and on which side."""

    norm: Norm
    absorbed: tuple[Absorb, ...]

    @property
    def into(self) -> str:
        return ", ".join(dict.fromkeys(place(a.node) for a in self.absorbed))

    @property
    def side(self) -> str:
        sides = {a.side for a in self.absorbed}
        return sides.pop() if len(sides) == 1 else "both" if sides else ""


@dataclass(eq=False)
class Plan:
    """The steps in order, the norms that stay and why, and what all steps together make of every owner."""

    norms: list[Norm] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    kept: list[tuple[Norm, str]] = field(default_factory=list)
    changes: dict[Hashable, Change] = field(default_factory=dict)

    folded_owners: set[Hashable] = field(default_factory=set)

    @property
    def names(self) -> list[str]:
        """Of the norms that fold, in order."""
        return [step.norm.names[0] for step in self.steps]

    def to_blame(self, problem: OutOfRange) -> tuple[Hashable, Hashable]:
        """(the norm that does most to a value that has left its range, the owner of that value)."""
        owner = problem.owner
        taken = [(s.norm, a.form) for s in self.steps for a in s.absorbed if a.node.owner == owner]
        norm, _ = max(taken, key=lambda pair: problem.weight_of(pair[1]))
        return norm.owner, owner


def make_plan(
    graph: Graph,
    *,
    keep: Sequence[str] = (),
    barred: Mapping[Hashable, str] | None = None,
) -> Plan:
    """Decide for every norm of the graph, again and again until no further norm can go.

    `keep` are globs over names of norms that stay; `barred` says why a norm's owner must not change another
    (a pair of owners), or why an owner must not change at all.
    """
    planner = _Planner(graph, tuple(keep), barred or {})
    planner.run()
    return planner.plan


class _Planner:
    def __init__(self, graph: Graph, keep: tuple[str, ...], barred: Mapping[Hashable, str]) -> None:
        self.graph, self.keep = graph, keep
        self.calls = calls_by_owner(graph.nodes)
        self.plan = Plan(norms=find_norms(self.calls))
        self.norms = {norm.owner: norm for norm in self.plan.norms}
        self.constants = Constants(graph, self.plan.changes)
        self.memory = Memory(graph, self.plan.folded_owners)
        self.showing = Showing(graph)
        self.barred = dict(barred)
        for norm in self.plan.norms:  # what stays as it is takes no other norm's map either
            refusal = self._may_go(norm)
            if refusal is not None:
                self.barred.setdefault(norm.owner, refusal.reason)

    def run(self) -> None:
        todo, reasons = list(self.plan.norms), dict[int, str]()
        while todo:
            left = []
            for norm in todo:
                outcome = self._decide(norm)
                if isinstance(outcome, Blocked):
                    reasons[id(norm)] = outcome.reason
                    left.append(norm)
                else:
                    self._accept(outcome)
            if len(left) == len(todo):
                break
            todo = left
        gone = self.plan.folded_owners
        self.plan.kept = [(n, reasons[id(n)]) for n in self.plan.norms if n.owner not in gone]

    def _may_go(self, norm: Norm) -> Blocked | None:
        if any(matches(name, self.keep) for name in norm.names):
            return Blocked("kept as asked")
        pinned = next((c.pinned for c in norm.calls if c.pinned), "")
        if pinned:
            return Blocked(pinned)
        if norm.owner in self.barred:
            return Blocked(self.barred[norm.owner])
        return norm.map if isinstance(norm.map, Blocked) else None

    def _decide(self, norm: Norm) -> Step | Blocked:
        refusal = self._may_go(norm)
        if refusal is not None:
            return refusal
        calls = [call for call in norm.calls if _is_read(call)] or norm.calls
        maps = [self._current(norm, call) for call in calls]
        blocked = next((m for m in maps if isinstance(m, Blocked)), None)
        if blocked is not None:
            return blocked
        pairs = [(c, m) for c, m in zip(calls, maps, strict=True) if not isinstance(m, Blocked)]
        refusals = []
        for attempt in ATTEMPTS:
            goals = attempt(pairs)
            whole = attempt in WHOLE
            found = goals if isinstance(goals, Blocked) else self._search(norm, goals, whole=whole)
            if not isinstance(found, Blocked):
                overwritten = self.memory.nothing_overwrites(norm.calls)
                return Step(norm, tuple(found.absorbed)) if overwritten is None else overwritten
            refusals.append(found.reason)
        return Blocked(f"not into what feeds it ({refusals[0]}); not into what it feeds ({refusals[1]})")

    def _current(self, norm: Norm, call: Node) -> ChannelAffine | Blocked:
        """The norm's map with what it has absorbed itself, laid along the value's channel dimension."""
        assert isinstance(norm.map, ChannelAffine)
        total, change = norm.map, self.plan.changes.get(norm.owner)
        if change is not None:
            total = total @ change.pre if change.pre is not None else total
            total = change.post @ total if change.post is not None else total
        rank = call.attrs.get("rank") or len(self.graph.shape(call) or ())
        if not rank:
            return self.graph.unsized(call)
        return ChannelAffine.along(total, min(1, rank - 1), rank)  # in ONNX a single dimension is one channel

    def _fixed(self, call: Node) -> ChannelAffine | Blocked:
        """What a norm does at one of its calls, by what it is now."""
        norm = self.norms[call.owner]
        return norm.map if isinstance(norm.map, Blocked) else self._current(norm, call)

    def _misfits(self, call: Node) -> bool:
        """Whether a norm is given what it has no statistics for, or a sum what does not line up.

        (Only asked where something is amiss.)
        """
        sizes = [size for value in call.inputs if (size := self.graph.shape(value)) is not None]
        if call.kind in LINES:
            return not fit_together(sizes)
        given = sizes[0] if is_norm(call) and sizes else None
        found = self.norms[call.owner].map if call.owner in self.norms else None
        return isinstance(found, ChannelAffine) and given is not None and given[1:2] != found.shape

    def _search(self, norm: Norm, goals: list[Goal], *, whole: bool) -> Found | Blocked:
        gone = self.plan.folded_owners
        search = Search(self.constants, self.showing, gone, norm.owner, self.barred, self._fixed, whole)
        try:
            found = search.run(goals)
        except ValueError:  # maps that cannot be put together
            if not any(map(self._misfits, self.graph.nodes)):
                raise
            return Blocked("sizes that do not fit meet on the way: give sizes that the model takes")
        if isinstance(found, Blocked):
            return found
        disagreed = self._agreed(found)
        return found if disagreed is None else disagreed

    def _agreed(self, found: Found) -> Blocked | None:
        """Every call of an owner must take the same map, and nobody else may read what changes."""
        for owner, absorbs in by_owner(found.absorbed).items():
            if owner in found.relied:
                return Blocked(f"{place(absorbs[0].node)} would have to change and to stay as it is")
            for refusal in (self._one_map(absorbs), self._nobody_else_reads(absorbs)):
                if refusal is not None:
                    return refusal
        return None

    def _one_map(self, absorbs: list[Absorb]) -> Blocked | None:
        """Why the calls of an owner would not all take one map; unread ones may take any."""
        asked = {id(a.node) for a in absorbs}
        calls = [c for c in self.calls[absorbs[0].node.owner] if _is_read(c) or id(c) in asked]
        changes = {id(c): Change(c) for c in calls}
        for a in absorbs:
            changes[id(a.node)] = changes[id(a.node)].take(a.side, a.form)
        first, *rest = changes.values()
        if all(same(first.pre, c.pre) and same(first.post, c.post) for c in rest):
            return None
        one, *others = dict.fromkeys(map(place, calls))
        if others:
            return Blocked(f"{one} shares its parameters with {others[0]}, which would need other ones")
        return Blocked(f"{one} is called {len(calls)} times, not every time with the same map")

    def _nobody_else_reads(self, absorbs: list[Absorb]) -> Blocked | None:
        node = absorbs[0].node
        calls = self.calls[node.owner]
        for param in changed_params(absorbs):
            if param.own_class:
                return _odd(param)
            if not param.writable:
                return Blocked(f"{param.name} is computed from other values or read where nobody can see it")
            others = [r for r in self.graph.readers(param.key) if r not in calls]
            if others:
                return Blocked(f"{param.name} is also used by {place(_in_use(others[0]))}")
        return None

    def _accept(self, step: Step) -> None:
        self.plan.steps.append(step)
        self.plan.folded_owners.add(step.norm.owner)
        self.plan.changes.pop(step.norm.owner, None)
        for owner, absorbs in by_owner(step.absorbed).items():
            one_call = [a for a in absorbs if a.node is absorbs[0].node]
            change = self.plan.changes.get(owner) or Change(absorbs[0].node)
            for a in one_call:
                change = change.take(a.side, a.form)
            self.plan.changes[owner] = change


def calls_by_owner(nodes: Iterable[Node]) -> dict[Hashable, list[Node]]:
    calls: dict[Hashable, list[Node]] = {}
    for node in nodes:
        if node.owner is not None:
            calls.setdefault(node.owner, []).append(node)
    return calls


def _is_read(call: Node) -> bool:
    """Whether an output derives from the call: values know no readers but those. Others ask for nothing."""
    return not call.inputs or any(reader is call for reader, _ in call.inputs[0].users)


def find_norms(calls: Mapping[Hashable, list[Node]]) -> list[Norm]:
    groups = [group for group in calls.values() if is_norm(group[0])]
    return [Norm(tuple(dict.fromkeys(map(place, group))), group, own_map(group[0])) for group in groups]


def own_map(node: Node) -> ChannelAffine | Blocked:
    """What a norm does by itself."""
    if node.attrs.get("training"):
        return Blocked("it is in train mode and normalises with the statistics of each batch")
    odd = next((param for param in node.params.values() if param.own_class), None)
    if odd is not None:
        return _odd(odd)
    mean, var, weight, bias = (_value(node, name) for name in ("mean", "var", "weight", "bias"))
    if node.kind == "instance_norm" and (mean is None or var is None):
        return Blocked("it normalises every sample with the sample's own statistics")
    return norm_map(mean, var, weight, bias, node.attrs["eps"])


def _odd(param: Param) -> Blocked:
    return Blocked(f"{param.name} is a {param.own_class}, of whose numbers nothing is known")


def _value(node: Node, name: str) -> Array | None:
    return node.params[name].fetch() if name in node.params else None


def by_owner(absorbs: Iterable[Absorb]) -> dict[Hashable, list[Absorb]]:
    result: dict[Hashable, list[Absorb]] = {}
    for a in absorbs:
        result.setdefault(a.node.owner, []).append(a)
    return result


def changed_params(absorbs: list[Absorb]) -> list[Param]:
    params = dict(absorbs[0].node.params)
    only_bias = all(a.side == "after" and not a.form.scales for a in absorbs) and "weight" in params
    if only_bias and absorbs[0].node.kind not in ("embedding",):
        params = {name: p for name, p in params.items() if name == "bias"}
    return list(params.values())


def _in_use(reader: Node) -> Node:
    """A parameter that is an operand is used by what it is an operand of."""
    return reader.users[0][0] if reader.kind == "parameter" and reader.users else reader
