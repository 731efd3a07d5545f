"""Which way a traced forward goes where the data decide: one now, the other in another trace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx

from bntool.graphs.fx_shortcuts import LITERALS

#: a module that can go more ways is not traced: each fork on a way is one more
MOST_WAYS = 128


class EndlessWays(Exception):
    """One way alone has too many forks: a loop that goes on for as long as the data say."""


@dataclass
class Forks:
    """The forks of one way: `decisions` says how they go, and grows by those that are met beyond them."""

    decisions: list[bool]
    taken: int = 0
    answers: dict[Any, bool] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """What is asked, in words that are the same in another trace."""

    def at(self, node: fx.Node, question: Any = None) -> bool:
        """Which way to go, the same whenever the same is asked. Raises: EndlessWays."""
        question = asked(node) if question is None else question
        if question not in self.answers:
            if self.taken == MOST_WAYS:
                raise EndlessWays
            if self.taken == len(self.decisions):
                self.decisions.append(True)
            self.answers[question] = self.decisions[self.taken]
            literals = [a for a in node.args if not isinstance(a, fx.Node)]
            self.asked.append(f"{node.op} {node.target} {literals}")
            self.taken += 1
        return self.answers[question]


def asked(node: fx.Node) -> Any:
    """Equal for nodes that compute the same from the same, as `mode == "train"` does wherever it stands."""
    plain = all(isinstance(a, fx.Node) or type(a) in LITERALS for a in node.args) and not node.kwargs
    return (node.target, node.args) if plain and node.op == "call_function" else node
