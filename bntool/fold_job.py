"""Folding one module: planned, carried out, planned again where a value does not fit."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from bntool.copying import copied, keeps_calling
from bntool.edits import detach_idle
from bntool.fold_module import fold_here, folded_copy
from bntool.graphs.base import Param
from bntool.graphs.fx_baked import bake
from bntool.graphs.fx_modules import FxGraph
from bntool.graphs.islands import module_graph
from bntool.lazy import give_sizes, has_lazy_parts, insist_on_data, sized
from bntool.plan import Plan, make_plan
from bntool.pooling.batches import Call
from bntool.rewriting import OutOfRange, rewrites
from bntool.room import Room, large_parameters
from bntool.structure import record_changes, structure_of


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """A fold makes many small objects and drops few: collecting garbage meanwhile doubles its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass
class Job:
    """One fold: what is planned and on which model it is carried out.

    `base` is the model itself until a copy has to be changed before it can be folded.
    """

    model: nn.Module
    inputs: tuple[tuple[Any, ...], dict[str, Any]] | None
    keep: tuple[str, ...] = ()
    in_place: bool = False

    def __post_init__(self) -> None:
        self.base = self.model
        self.graph: FxGraph
        self.plan: Plan

    def run(self) -> nn.Module:
        """Raises: UsageError for lazy modules without inputs, and for tensors without data."""
        with collector_paused():
            return self._run()

    def _run(self) -> nn.Module:
        insist_on_data(self.model)
        if has_lazy_parts(self.model):
            self._give_sizes()
        if not self.in_place and keeps_calling(self.model):  # what the copy will do is seen on the copy
            self.base = copied(self.model, {})
        before = structure_of(self.model)
        with Room(large_parameters(self.model) if self._copies() else []) as room:
            self._plan({})
            if computed_modules(self.plan):
                self._bake()
            folded = self._carry_out(room)
        record_changes(before, folded)
        detach_idle(folded)
        return folded

    def _copies(self) -> bool:
        """Whether the model is still to be copied."""
        return self.base is self.model and not self.in_place

    def _give_sizes(self) -> None:
        call = None if self.inputs is None else Call(*self.inputs)
        if self.in_place:
            give_sizes(self.model, call)
        else:
            self.base = self.model = sized(self.model, call)

    def _plan(self, barred: dict[Hashable, str]) -> None:
        if not barred:
            self.graph = module_graph(self.base, self.inputs, for_other_batches=True)
        self.plan = make_plan(self.graph, keep=self.keep, barred=barred)

    def _bake(self) -> None:
        paths = computed_modules(self.plan)
        if self._copies():
            self.base = copied(self.model, {})
        for path in paths:
            bake(self.base.get_submodule(path))
        self._plan({})

    def _carry_out(self, room: Room) -> nn.Module:
        """Where a new value would leave its dtype's range, plan again without what scales it most."""
        barred: dict[Hashable, str] = {}
        while True:
            try:
                return self._write(room)
            except OutOfRange as problem:
                barred[self.plan.to_blame(problem)] = problem.reason
                self._plan(barred)

    def _write(self, room: Room) -> nn.Module:
        if self._copies():
            return folded_copy(self.base, self.plan, room)
        fold_here(self.base, self.plan)
        return self.base


def computed_modules(plan: Plan) -> list[str]:
    """Modules with a tensor that is computed anew for every call and that a plan changes."""
    some = [change for change in plan.changes.values() if any(map(_computed, change.node.params.values()))]
    params = [rewrite.param for rewrite in rewrites(some)]
    return list(dict.fromkeys(p.name.rpartition(".")[0] for p in params if p is not None and _computed(p)))


def _computed(param: Param) -> bool:
    return isinstance(param.key, tuple) and param.key[0] == "computed" and len(param.key) == 3
