"""Makes a failing case smaller: drops steps while the same complaint remains."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.fuzz.cases import Case, usable
from tests.fuzz.networks import Net, Step

Fails = Callable[[Case], bool]


def nets(case: Case) -> list[Net]:
    return [m for m in case.model.modules() if isinstance(m, Net)]


def bypass(net: Net, number: int) -> None:
    """Takes out the step that makes value `number`; its readers read its first input instead."""
    source = net.steps[number - 1].inputs[0]

    def renumber(i: int) -> int:
        i = source if i == number else i
        return i - 1 if i > number else i

    del net.steps[number - 1]
    net.steps = [Step(s.op, tuple(renumber(i) for i in s.inputs), s.layer, s.args) for s in net.steps]
    net.outputs = list(dict.fromkeys(renumber(i) for i in net.outputs))


def smaller(case: Case) -> Iterator[Case]:
    """The case with one output, or one step, less."""
    for index, net in enumerate(nets(case)):
        for position in range(len(net.outputs) if len(net.outputs) > 1 else 0):
            model = copy.deepcopy(case.model)
            del nets(replace(case, model=model))[index].outputs[position]
            yield replace(case, model=model)
        for number in range(len(net.steps), 0, -1):
            model = copy.deepcopy(case.model)
            bypass(nets(replace(case, model=model))[index], number)
            yield replace(case, model=model)


def shrink(case: Case, fails: Fails) -> Case:
    """The smallest case found by taking away one thing at a time that still fails."""
    for candidate in smaller(case):
        if usable(candidate.model, candidate.inputs) and fails(candidate):
            return shrink(candidate, fails)
    return case
