"""Sizes and element types in a torch.fx graph: propagated without computing, and only as far as asked for.

Runs the ops on `meta` tensors, which have sizes and types but no data (ten times faster than fake tensors).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import fx, nn

from bntool.algebra.rules import DATA_SIZES, NEED_SIZES
from bntool.graphs.fx_recurrent import RECURRENT, recurrent_results
from bntool.graphs.fx_remembered import remembered

T = TypeVar("T")
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _Unknown:
    def __repr__(self) -> str:
        return "UNKNOWN"

    def __bool__(self) -> bool:
        return False


#: a value that cannot be known without running the model on data
UNKNOWN = _Unknown()


#: methods that bring a tensor to a device, or make it one of another type
MOVES = ("to", "cpu", "cuda", "xpu")
#: methods that give the tensor itself another shape
RESHAPING = ("unsqueeze_", "squeeze_", "t_", "transpose_", "swapaxes_", "swapdims_", "as_strided_", "resize_")


class Sizes:
    """What is known of the values of a graph that is traced or being traced.

    With example inputs tensors are known by size and type, and numbers that derive from sizes are plain
    numbers; without them only what derives from parameters is known.
    """

    def __init__(
        self,
        root: nn.Module,
        inputs: Inputs | None,
        modules: dict[str, nn.Module] | None = None,
        *,
        noted: bool = False,
    ) -> None:
        self.root = root
        self.noted = noted
        """Whether the graph's nodes carry what their values were when it was exported."""
        self.unsized = NEED_SIZES if inputs is None else DATA_SIZES
        """Why sizes that are not known are not."""
        self.values: dict[fx.Node, Any] = {}
        self.modules = modules if modules is not None else {}
        self.constants: dict[str, torch.Tensor] = {}
        """Tensors made while tracing, by the name under which the graph reads them."""
        self.held: dict[str, torch.Tensor] = {}
        """The root's tensors as they were before the forward put others in their places."""
        self.impossible: Exception | None = None
        """What a call of known values raises whatever is in them, if one does."""
        self.constant: dict[fx.Node, bool] = {}
        self.metas: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        args, kwargs = inputs if inputs is not None else ((), {})
        self.args, self.kwargs = [self._meta(a) for a in args], {k: self._meta(v) for k, v in kwargs.items()}

    def module(self, path: str) -> nn.Module:
        """The root's submodule at `path`, remembered: it is asked for several times a node."""
        if path not in self.modules:
            self.modules[path] = self.root.get_submodule(path)
        return self.modules[path]

    def tensor(self, path: str) -> Any:
        """What a graph reads under `path`: a constant, or an attribute of the root."""
        found = self.constants.get(path, self.held.get(path))
        return attribute(self.root, path) if found is None else found

    def value(self, node: fx.Node) -> Any:
        return _with_inputs_first(node, self.values, self._evaluate)

    def is_constant(self, node: fx.Node) -> bool:
        """Whether a value derives from parameters and literals alone."""
        return _with_inputs_first(node, self.constant, self._is_constant)

    def _is_constant(self, node: fx.Node) -> bool:
        inputs = node.all_input_nodes
        return node.op == "get_attr" or (
            node.op not in ("placeholder", "call_module")
            and bool(inputs)
            and all(self.constant[n] for n in inputs)
        )

    def _evaluate(self, node: fx.Node) -> Any:
        if any(self.values[n] is UNKNOWN for n in node.all_input_nodes):
            return self._note(node)
        try:
            with torch.no_grad():
                return _without_data(self._run(node))
        except Exception as error:
            if "meta" not in str(error) and not isinstance(error, (NotImplementedError, fx.proxy.TraceError)):
                self.impossible = self.impossible or error
            return self._note(node)

    def _note(self, node: fx.Node) -> Any:
        """What the exporter noted of a value's sizes, where they are fixed."""
        value = node.meta.get("val") if self.noted else None
        if not isinstance(value, torch.Tensor) or not all(isinstance(size, int) for size in value.shape):
            return UNKNOWN
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    def _run(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op == "get_attr":
            return self._meta(self.tensor(str(node.target)))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.values[n])
        if node.op == "call_module":
            return self._call_module(str(node.target), args, kwargs)
        if node.op == "call_method" and node.target in MOVES and isinstance(args[0], torch.Tensor):
            return _moved(args[0], (*args[1:], *kwargs.values()), str(node.target))
        if isinstance(kwargs.get("device"), (str, torch.device)):  # one that this machine may not have
            kwargs = {**kwargs, "device": "meta"}
        call = partial(_called, node, args, kwargs)
        return remembered(node.target, args, kwargs, call)

    def _placeholder(self, node: fx.Node) -> Any:
        name = str(node.target)
        position = sum(1 for n in _before(node) if n.op == "placeholder")
        if name.startswith("*"):  # how many there are nobody knows without inputs
            given = dict(self.kwargs) if name.startswith("**") else tuple(self.args[position:])
            return given if self.args or self.kwargs else UNKNOWN
        if name in self.kwargs:
            return self.kwargs[name]
        if position < len(self.args):
            return self.args[position]
        default = node.args[0] if node.args and (self.args or self.kwargs) else None
        return UNKNOWN if default is None else default

    def _call_module(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.module(name)
        given = (*args, *kwargs.values())
        norm = isinstance(module, nn.modules.batchnorm._NormBase)
        if norm and len(given) == 1 and given[0].ndim > 1 and given[0].shape[1] == module.num_features:
            return given[0]  # its size is its input's, and working that out the long way takes 9 ms
        if type(module) in CONVS and len(args) == 1:
            return self._conv(module, args[0])
        if type(module) in RECURRENT and args and getattr(args[0], "ndim", 0) == 3:
            return recurrent_results(module, args[0])
        tensors = (*module.named_parameters(), *module.named_buffers())
        state = {key: self._meta(t) for key, t in tensors}
        hooks_free = type(module).forward
        with torch.nn.utils.stateless._reparametrize_module(module, state):
            return hooks_free(module, *args, **kwargs)

    def _conv(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """(A module with other tensors in it, the general way, takes ten times as long.)"""
        weight = self._meta(module.weight)
        return module._conv_forward(x, weight, None if module.bias is None else self._meta(module.bias))  # type: ignore[no-any-return]

    def _meta(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if id(value) not in self.metas:
                self.metas[id(value)] = (value, value.detach().to("meta"))
            return self.metas[id(value)][1]
        if isinstance(value, (tuple, list)):
            return type(value)(self._meta(v) for v in value)
        if isinstance(value, dict):
            return {k: self._meta(v) for k, v in value.items()}
        return value


def _called(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if node.op == "call_method":
        of = args[0].detach() if node.target in RESHAPING else args[0]  # what it was stays known
        return getattr(of, str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    with torch.device("meta"):
        return _without_data(node.target(*args, **kwargs))


def _moved(value: torch.Tensor, given: tuple[Any, ...], how: str) -> torch.Tensor:
    """What a tensor is on another device: it stays where sizes are worked out."""
    types = [a for a in given if isinstance(a, (torch.dtype, torch.Tensor))]
    return value.to(types[0]) if how == "to" and types else value


def _without_data(value: Any) -> Any:
    """(A call that names a device of its own makes a tensor there, which meets none on `meta`.)"""
    made = isinstance(value, torch.Tensor) and not value.is_meta
    return torch.empty_like(value, device="meta") if made else value


def rebatched(inputs: Inputs | None, *more: int) -> list[Inputs]:
    """The inputs as they would be for other batch sizes: one item, one more, those of `more`, many; none
    without a batch.
    """
    if inputs is None:
        return []
    values = [*inputs[0], *inputs[1].values()]
    batches = {v.shape[0] if v.ndim else None for v in values if isinstance(v, torch.Tensor)}
    if len(batches) != 1 or None in batches:
        return []
    here = batches.pop() or 0

    def resized(value: Any, batch: int) -> Any:
        return value[:1].expand(batch, *value.shape[1:]) if isinstance(value, torch.Tensor) else value

    return [
        (tuple(resized(v, n) for v in inputs[0]), {k: resized(v, n) for k, v in inputs[1].items()})
        for n in dict.fromkeys((1, here + 1, *more, 4096))
        if n != here and here
    ]


def revalued(inputs: Inputs | None, arguments: Mapping[tuple[int, str], Any]) -> list[Inputs]:
    """The inputs with another number, or length of a list, in one of `arguments` (place and name -> default)
    each.
    """
    args, kwargs = inputs if inputs is not None else ((), {})
    found: list[Inputs] = []
    for (place, name), default in arguments.items():
        if name.startswith("*"):
            found += [(other, kwargs) for other in _others(tuple(args)) if len(other) >= place]
        elif place < len(args) and name not in kwargs:
            found += [((*args[:place], other, *args[place + 1 :]), kwargs) for other in _others(args[place])]
        elif name in kwargs or args or kwargs:
            given = kwargs.get(name, default)
            found += [(args, {**kwargs, name: other}) for other in _others(given)]
    return found


def _others(value: Any) -> list[Any]:
    """Values next to an argument's: one less and one more, of numbers or of what a list holds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [value - 1, value + 1]
    if type(value) in (list, tuple) and value:
        numbers = [
            type(value)([*value[:i], n, *value[i + 1 :]]) for i, v in enumerate(value) for n in _others(v)
        ]
        return [value[:-1], value + value[-1:], *numbers]
    return []


def _with_inputs_first(node: fx.Node, known: dict[fx.Node, T], work_out: Callable[[fx.Node], T]) -> T:
    """`known[node]`, worked out after all it depends on. (Graphs may be deeper than the stack.)"""
    pending = [node]
    while pending:
        node = pending[-1]
        missing = [n for n in node.all_input_nodes if n not in known]
        pending.extend(missing)
        if not missing:
            pending.pop()
            if node not in known:
                known[node] = work_out(node)
    return known[node]


def _before(node: fx.Node) -> list[fx.Node]:
    result = []
    while (node := node.prev).op != "root":
        result.append(node)
    return result


def attribute(root: nn.Module, path: str) -> Any:
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    return value
