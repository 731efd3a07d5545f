"""One traced torch.fx graph -> nodes of the neutral vocabulary."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from bntool.algebra.absorbing import NORMS
from bntool.graphs.base import SHARING, Node, Param
from bntool.graphs.fx_baked import has_own_forward, own_type
from bntool.graphs.fx_bias import would_use_a_bias
from bntool.graphs.fx_calls import (
    IN_PLACE_OPERATORS,
    SIZE_ATTRIBUTES,
    SIZE_METHODS,
    Call,
    Spec,
    changes_in_place,
    function_name,
    names,
    overwritten,
    param_of,
    tensor_key,
)
from bntool.graphs.fx_frozen import is_frozen_norm
from bntool.graphs.fx_kinds import FUNCTIONS, LAYOUT_ATTRIBUTES, MODULES, PIECES, TORCH_LEAVES
from bntool.graphs.fx_layers import frozen_norm
from bntool.graphs.fx_modules import FxGraph, is_piece
from bntool.graphs.fx_ops import summed_parts
from bntool.graphs.fx_overwritten import Overwritten, is_written
from bntool.graphs.fx_pinned import Pins
from bntool.graphs.fx_scaled import factors, weight_path
from bntool.graphs.fx_sizes import attribute
from bntool.graphs.fx_ways import Way

#: kinds whose parameters a plan may change
OWNING = names(
    "conv conv_transpose linear matmul_const embedding parameter "
    "batch_norm instance_norm layer_norm group_norm"
)


@dataclass
class Translator:
    """One traced graph -> nodes. `prefix` is the module path of the traced part."""

    graph: FxGraph
    way: Way
    part: nn.Module
    prefix: str
    now: dict[fx.Node, Node] = field(default_factory=dict)
    plain: set[fx.Node] = field(default_factory=set)
    aliases: dict[int, list[fx.Node]] = field(default_factory=dict)
    """The traced values that `now` says are a node, by its id: in-place ops make one of several."""
    stacked: dict[fx.Node, list[Node]] = field(default_factory=dict)
    """What was stacked only to be added up, as it was then."""
    within: set[fx.Node] = field(default_factory=set)
    """Products that are nothing but layers' weights."""

    def __post_init__(self) -> None:
        self.overwritten = Overwritten(self.way.sizes)
        self.pins = Pins(self.way, self.plain)

    def run(self) -> None:
        self.graph.sizes_of[id(self.way.graph)] = self.way.sizes
        start = len(self.graph.nodes)
        paths = [path for node in self.way.graph.nodes if (path := weight_path(node, self.way.sizes))]
        self.within = {node for path in paths for node in path}
        for factor in dict.fromkeys(factor for path in paths for factor in factors(path)):
            self._value(factor)  # nothing else may change it
        for node in self.way.graph.nodes:
            if self._is_plain(node):
                self.plain.add(node)
            else:
                self._translate(node)
        self.overwritten.mark(self.graph.nodes, start)

    def _is_plain(self, node: fx.Node) -> bool:
        """Sizes, types and what is computed from them: they tell nothing of the data."""
        if node.op in ("placeholder", "get_attr", "call_module", "output"):
            return False
        name = function_name(node)
        if name == "getattr" and node.args[1] in SIZE_ATTRIBUTES:
            return True
        if node.op == "call_method" and name in SIZE_METHODS and not (name == "type" and len(node.args) > 1):
            return True
        return all(n in self.plain for n in node.all_input_nodes)

    def _translate(self, node: fx.Node) -> None:
        if node.op == "output":
            self._add(node, Spec("output", tuple(self._tensors(node.args)), {"of": self.prefix}))
            return
        if node.op == "placeholder":
            self._add(node, Spec("input"))
            return
        if node.op == "get_attr":  # becomes a node where its data is read as an operand
            if not isinstance(self.way.sizes.tensor(str(node.target)), torch.Tensor):
                self.plain.add(node)
            return
        if node in self.within or (function_name(node) in PIECES and all(is_piece(u) for u in node.users)):
            return
        if function_name(node) == "stack" and node.users and all(map(self._adds_up, node.users)):
            parts = summed_parts(Call(next(iter(node.users)), self.part, self.way.sizes, self.plain))
            self.stacked[node] = [self._value(part) for part in parts]
            return
        spec = self._spec(node)
        new = self._add(node, spec if spec is not None else self._opaque(node))
        if changes_in_place(node) and new.kind != "identity":  # an in-place dropout in eval changes nothing
            new.overwrites = True
            targets = overwritten(node)
            if [self.now.get(target) for target in targets] != [*new.inputs[:1]]:
                new.watched = new.watched or f"{new.where} changes several values in place"
            for target in targets:
                self._overwrite(target, new)

    def _adds_up(self, node: fx.Node) -> bool:
        """Whether a node only adds up what was stacked: it reads the parts then, and not the stack."""
        adds = function_name(node) in ("sum", "mean")
        return adds and bool(summed_parts(Call(node, self.part, self.way.sizes, self.plain)))

    def _spec(self, node: fx.Node) -> Spec | None:
        if node.all_input_nodes and node.all_input_nodes[0] in self.stacked:
            parts = self.stacked[node.all_input_nodes[0]]
            factor = 1.0 if function_name(node) == "sum" else 1 / len(parts)
            return Spec("combination", tuple(parts), {"factors": (factor,) * len(parts), "shift": 0.0})
        call = Call(node, self.part, self.way.sizes, self.plain)
        if node.op == "call_module":
            module = call.module()
            if has_own_forward(module):
                return None
            build = MODULES.get(own_type(module), frozen_norm if is_frozen_norm(module) else None)
        elif is_piece(node):
            source = node.args[0]
            assert isinstance(source, fx.Node)
            return Spec("layout", (source.args[0],))
        elif function_name(node) == "getattr" and node.args[1] in LAYOUT_ATTRIBUTES:
            return Spec("layout", (node.args[0],))
        else:
            build = FUNCTIONS.get(function_name(node))
        spec = build(call) if build is not None else None
        return spec if spec is not None and self._understood(node, spec) else None

    def _understood(self, node: fx.Node, spec: Spec) -> bool:
        """Inputs must be traced tensors; a layout may depend on no other tensor's data."""
        if not all(isinstance(i, fx.Node) for i in spec.inputs):
            return False
        if spec.kind != "layout":
            return True
        if self._is_one_of_several(node):
            return False
        if any(n.op == "get_attr" and is_written(n, self.way.sizes) for n in node.all_input_nodes[1:]):
            return False
        return not any(isinstance(i, fx.Node) and i not in self.plain for i in self._index_inputs(node))

    def _is_one_of_several(self, node: fx.Node) -> bool:
        """Whether a node takes one of several values that a call gives: an attention's output and weights."""
        source = node.args[0] if node.args and function_name(node) == "getitem" else None
        if not isinstance(source, fx.Node) or is_piece(node):
            return False
        value = self.way.sizes.value(source)
        leaf = source.op == "call_module" and isinstance(
            self.way.sizes.module(str(source.target)), TORCH_LEAVES
        )
        return isinstance(value, (tuple, list)) or (leaf and isinstance(node.args[1], int))

    def _index_inputs(self, node: fx.Node) -> list[fx.Node]:
        return [
            n for n in node.all_input_nodes[1:] if n.op != "get_attr" and "_as" not in function_name(node)
        ]

    def _opaque(self, node: fx.Node) -> Spec:
        if self._is_one_of_several(node):
            return Spec("opaque", (node.args[0],), {"what": self._what(node.all_input_nodes[0])})
        params: dict[str, Param] = {}
        if node.op == "call_module":
            module = self.way.sizes.module(str(node.target))
            deep = self._full(str(node.target)) not in self.graph.dark  # children of those are islands
            for name, tensor in (*module.named_parameters(recurse=deep), *module.named_buffers(recurse=deep)):
                params[name] = param_of(tensor, f"{node.target}.{name}")
        return Spec(
            "opaque", tuple(self._tensors((node.args, node.kwargs))), {"what": self._what(node)}, params
        )

    def _what(self, node: fx.Node) -> str:
        """What a reason calls a call that nothing is known of."""
        if node.op == "call_module":
            return type(self.way.sizes.module(str(node.target))).__name__
        return function_name(node) or str(getattr(node.target, "__name__", node.target))

    def _tensors(self, arguments: Any) -> list[fx.Node]:
        found: list[fx.Node] = []

        def note(node: fx.Node) -> fx.Node:
            found.append(node)
            return node

        fx.node.map_arg(arguments, note)
        return [n for n in found if n not in self.plain]

    def _parameter(self, node: fx.Node) -> Node:
        path = str(node.target)
        if path in self.way.sizes.constants:
            made = self._add(node, Spec("constant"))  # which may share memory with a parameter
            self.graph.reading.setdefault(tensor_key(self.way.sizes.constants[path]), []).append(made)
            return made
        spec = Spec("parameter", (), {}, {"value": param_of(attribute(self.part, path), path)})
        made = self._add(node, spec)
        layer, parametrized, rest = path.partition(".parametrizations.")
        if parametrized:  # what is computed from it cannot become a parameter of its own
            key = ("computed", id(self.part.get_submodule(layer)), rest.partition(".")[0])
            self.graph.reading.setdefault(key, []).append(made)
        return made

    def _value(self, node: fx.Node) -> Node:
        if node in self.plain:
            constant = Node(node.name, "constant", origin=node, where=node.name)
            self._name(node, self.graph.add(constant))
            self.plain.discard(node)
        elif node.op == "get_attr" and node not in self.now:
            return self._parameter(node)
        elif node not in self.now:  # all pieces of a split at once
            self._add(node, self._opaque(node))
        return self.now[node]

    def _add(self, node: fx.Node, spec: Spec) -> Node:
        inputs = tuple([i if isinstance(i, Node) else self._value(i) for i in spec.inputs])
        params = {name: self._renamed(p) for name, p in spec.params.items()} if spec.params else {}
        if "no_bias" in spec.attrs and self._would_use_a_bias(node):
            del spec.attrs["no_bias"]
        new = Node(node.name, spec.kind, inputs, spec.attrs, params, origin=node, where=self._where(node))
        if spec.kind in OWNING:
            parts = (spec.kind, *map(self._owner_part, params.values()), spec.attrs.get("eps"))
            new.owner = self.graph.owners.setdefault(parts, len(self.graph.owners) + 1)
        new.watched = self.way.watched.get(node, "")
        new.pinned = self.pins.why_pinned(node) if spec.kind in NORMS else ""
        self._name(node, self.graph.add(new))
        if spec.kind in SHARING:
            self.overwritten.is_view(new)
        return new

    def _name(self, node: fx.Node, value: Node) -> None:
        self.now[node] = value
        self.aliases.setdefault(id(value), []).append(node)

    def _would_use_a_bias(self, node: fx.Node) -> bool:
        path = str(node.meta.get("at", ""))
        return bool(path) and would_use_a_bias(
            self.way.sizes.module(path), node, self.way.given.get(path, [None])
        )

    def _renamed(self, param: Param) -> Param:
        if param.name in self.way.rebound or param.name in self.way.read_unseen:
            param = replace(param, writable=False)
        return replace(param, name=self._full(param.name)) if self.prefix else param

    def _full(self, path: str) -> str:
        return ".".join(part for part in (self.prefix, path) if part)

    def _owner_part(self, param: Param) -> Hashable:
        if not param.writable or (isinstance(param.key, tuple) and param.key[0] == "computed"):
            return param.key
        return (param.key, param.part)

    def _where(self, node: fx.Node) -> str:
        path = str(node.meta.get("at", ""))
        if node.op == "output":
            return "the output"
        if node.op == "get_attr":
            path = str(node.target)
        elif node.op != "call_module" and not self._is_the_modules_own(node, path):
            name = function_name(node)
            name = name.removeprefix("i") if name in IN_PLACE_OPERATORS else name
            path = f"{path}.{name or node.name}" if path else name or node.name
        return f"{self.prefix}.{path}" if self.prefix and path else path or self.prefix

    def _is_the_modules_own(self, node: fx.Node, path: str) -> bool:
        """A module that wraps one function is known by its own name: relu1, not relu1.relu."""
        if not path:
            return False
        module = self.way.sizes.module(path)
        wraps = not module._modules and type(module).__module__.startswith("torch.nn")
        norms = isinstance(module, nn.modules.batchnorm._NormBase)
        convs = isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
        name = function_name(node)
        return wraps or (norms and name.endswith("_norm")) or (convs and name.startswith(("conv", "linear")))

    def _overwrite(self, target: fx.Node, new: Node) -> None:
        """An in-place op: from here on what it overwrites is its result; views of it have changed too."""
        if target not in self.now:
            return
        old = self.now[target]
        self.overwritten.write(old, new, len(self.graph.nodes))
        for alias in self.aliases.pop(id(old)):
            self._name(alias, new)
