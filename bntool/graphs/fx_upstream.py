"""What a traced value derives from."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

from torch import fx

from bntool.graphs.fx_calls import SIZE_ATTRIBUTES, SIZE_METHODS, names


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


#: methods that make something else than a tensor of one
TO_PYTHON = ("item", "tolist", "numpy")
#: what tensors say of where they are and what they are for, which need not be as it is for the example
CIRCUMSTANCES = names(
    "device is_cpu is_cuda is_meta is_mps is_xpu is_xla is_hpu is_mtia get_device is_pinned is_shared "
    "data_ptr requires_grad is_leaf"
)


def asks_circumstances(node: fx.Node, is_tensor: Callable[[fx.Node], bool]) -> bool:
    """Whether a value that is no tensor derives from the circumstances of one."""
    return any(_asked(value) in CIRCUMSTANCES for value in upstream(node, lambda v: not is_tensor(v)))


def is_plain(node: fx.Node) -> bool:
    """Whether a value is no tensor, but what one tells of itself and what is computed from that alone."""
    found = upstream(node, lambda value: not _tells(value))
    return all(v.op in ("call_function", "call_method") and v.all_input_nodes for v in found)


def _tells(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method"):
        return False
    name = _asked(node)
    return name in SIZE_ATTRIBUTES or (node.op == "call_method" and name in (*SIZE_METHODS, *TO_PYTHON))


def _asked(node: fx.Node) -> Any:
    """The name of the attribute or method, if it is one that a node asks for."""
    return node.args[1] if node.target is getattr else node.target


def question(value: Any, is_tensor: Callable[[fx.Node], bool]) -> str:
    """Equal for nodes that compute the same from any tensors: all of a model's are in one place."""
    if isinstance(value, (tuple, list)):
        return ", ".join(question(part, is_tensor) for part in value)
    if not isinstance(value, fx.Node):
        return repr(value)
    return "tensor" if is_tensor(value) else f"{value.target}({question(value.args, is_tensor)})"


def asks_for_optional(node: fx.Node, is_sized: Callable[[fx.Node], bool]) -> bool:
    """Whether a value derives from an argument that may be given or not; not by way of a tensor's sizes."""
    return any(value.meta.get("optional") for value in upstream(node, lambda v: not is_sized(v)))


def is_of_argument(node: fx.Node) -> bool:
    """Whether a node takes something out of an argument that is a dictionary, a tuple, a list."""
    while node.target in (operator.getitem, "get") and node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node.op == "placeholder"
