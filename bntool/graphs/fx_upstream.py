"""What a traced value derives from."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator

from torch import fx


def upstream(node: fx.Node, counts: Callable[[fx.Node], bool] = lambda value: True) -> Iterator[fx.Node]:
    """A node and all that it derives from; what does not count, and what is behind that, is left out."""
    todo, seen = [node], {node}
    while todo:
        value = todo.pop()
        if not counts(value):
            continue
        yield value
        todo += [v for v in value.all_input_nodes if v not in seen]
        seen.update(value.all_input_nodes)


def asks_for_optional(node: fx.Node) -> bool:
    """Whether a value derives from an argument that has a default: it may be given or not."""
    return any(value.meta.get("optional") for value in upstream(node))


def is_of_argument(node: fx.Node) -> bool:
    """Whether a node takes something out of an argument that is a dictionary, a tuple, a list."""
    while node.target in (operator.getitem, "get") and node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node.op == "placeholder"
