"""A plan that holds for other sizes of the inputs too: norms that go the same way whatever they are."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from bntool.changes import same
from bntool.graphs.base import Graph
from bntool.plan import Plan, Step, make_plan

#: why a norm stays that goes one way here and another, or none, for other batches
OTHER_BATCHES = "its map would have to go elsewhere for other batches"
#: the same for sizes that a torch.export program leaves open
OTHER_SIZES = "its map would have to go elsewhere for other sizes of the inputs"


def agreed_plan(
    graph: Graph,
    others: Sequence[tuple[Graph, str]],
    *,
    keep: Sequence[str] = (),
    barred: dict[Hashable, str],
) -> Plan:
    """The plan for `graph` in which every norm that goes, goes alike in all the `others`.

    Those are the same model, each with the reason for a norm to stay that does not go alike there; such norms
    are added to `barred`.
    """
    while True:
        plan = make_plan(graph, keep=keep, barred=barred)
        there = [(make_plan(other, keep=keep, barred=barred), reason) for other, reason in others]
        odd = {s.norm.owner: reason for p, reason in there for s in plan.steps if not _goes_in(s, p)}
        if not odd:
            return plan
        barred |= odd


def _goes_in(step: Step, plan: Plan) -> bool:
    return any(_alike(step, other) for other in plan.steps)


def _alike(one: Step, other: Step) -> bool:
    pairs = list(zip(one.absorbed, other.absorbed, strict=False))
    if one.norm.owner != other.norm.owner or len(one.absorbed) != len(other.absorbed):
        return False
    return all((a.node.owner, a.side) == (b.node.owner, b.side) and same(a.form, b.form) for a, b in pairs)
