"""Change a torch.export program: its graph, its signature and its state together, so that it stays one."""

from __future__ import annotations

import copy
import operator
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, SymIntArgument, TensorArgument

from bntool.graphs.aten_rules import TUPLES
from bntool.graphs.aten_schema import aten_name
from bntool.graphs.base import Node
from bntool.graphs.fx_modules import FxGraph
from bntool.plan import Plan
from bntool.rewriting import OutOfRange, Rewrite, fitting, rewrites
from bntool.tensors import Arithmetic

#: where an operator takes its bias
BIAS_AT = 2


@dataclass
class ProgramEdit:
    """A copy of a program's graph, signature and state. Tensors are replaced, never written."""

    program: ExportedProgram
    module: fx.GraphModule
    signature: Any
    state: dict[str, Any]
    constants: dict[str, Any]
    calls: list[Any]
    """What goes in and out of the modules whose signatures were to be preserved, by the names of nodes."""

    @classmethod
    def of(cls, program: ExportedProgram) -> ProgramEdit:
        module = copy.deepcopy(program.graph_module)
        for made, old in zip(module.graph.nodes, program.graph.nodes, strict=True):
            made.name = old.name  # copying renames what a builtin is called, and the signature goes by name
        signature = copy.deepcopy(program.graph_signature)
        state, constants = dict(program.state_dict), dict(program.constants)
        buffers = {spec.target for spec in signature.input_specs if spec.kind == InputKind.BUFFER}
        own = copy.deepcopy({name: (state | constants)[name] for name in buffers if name})
        for holder in (state, constants):  # running either program may change its buffers
            holder.update((name, own[name]) for name in holder.keys() & own.keys())
        with warnings.catch_warnings():  # torch warns of how it copies its own
            warnings.simplefilter("ignore", FutureWarning)
            calls = copy.deepcopy(program.module_call_graph)
        return cls(program, module, signature, state, constants, calls)

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    def carried_out(self, graph: FxGraph, plan: Plan) -> ExportedProgram:
        """The program with the plan carried out. Raises: OutOfRange."""
        for rewrite in rewrites(plan.changes.values()):
            if rewrite.param is not None and not _vanishes(rewrite):
                self._replace(rewrite)
            else:
                self._set_bias(rewrite, [n for n in graph.nodes if n.owner == rewrite.node.owner])
        for step in plan.steps:
            for call in step.norm.calls:
                self._bypass(self.own(call))
            self.forget([param.name for param in step.norm.calls[0].params.values()])
        return self.rebuilt()

    def own(self, node: Node) -> fx.Node:
        """The node of this graph that the neutral node was read from."""
        name = node.origin.name
        own: fx.Node = next(own for own in self.graph.nodes if own.name == name)
        return own

    # --- tensors

    def tensor(self, name: str) -> Tensor:
        found = self.state.get(name, self.constants.get(name))
        assert isinstance(found, Tensor), name
        return found

    def _replace(self, rewrite: Rewrite) -> None:
        """A new tensor under the same name, and under every other name of the same tensor."""
        assert rewrite.param is not None
        given = {**self.program.constants, **self.program.state_dict}
        old = given[rewrite.param.name]
        new = fitting(rewrite, Arithmetic().rewritten(rewrite, old))
        same = {name for name, other in given.items() if isinstance(other, Tensor) and _is_same(other, old)}
        for holder in (self.state, self.constants):
            holder.update((name, like(new, given[name])) for name in holder.keys() & same)

    def _set_bias(self, rewrite: Rewrite, calls: list[Node]) -> None:
        """Give every call of a layer a new bias, or take one away that has come out all zero."""
        owns = [self.own(call) for call in calls]
        if _vanishes(rewrite):
            for own in owns:
                _take_bias_away(own)
            assert rewrite.param is not None
            self.forget([rewrite.param.name])
            return
        weight = rewrite.node.params["weight"].name
        old = self.tensor(weight)
        assert rewrite.value is not None
        new = torch.from_numpy(rewrite.value).to(old.device, old.dtype)
        if not torch.isfinite(new).all():
            raise OutOfRange(rewrite, f"the new bias beside {weight} would leave its dtype's range")
        placeholder = self.new_input(weight, _bias_name(weight), like(new, old))
        for own in owns:
            self._add_bias(own, placeholder)

    def new_input(self, beside: str, name: str, tensor: Tensor) -> fx.Node:
        """A lifted tensor called `name`, or like it, right behind the one called `beside` and of its kind."""
        place, spec = next((i, s) for i, s in enumerate(self.signature.input_specs) if s.target == beside)
        before = next(n for n in self.graph.nodes if n.name == spec.arg.name)
        name = _free(name, {*self.state, *self.constants})
        with self.graph.inserting_after(before):
            made = self.graph.placeholder(f"{_prefix(before.name)}{name.replace('.', '_')}")
        made.meta = {"val": before.meta["val"].new_empty(tensor.shape, dtype=tensor.dtype)}
        kept = spec.kind == InputKind.PARAMETER or bool(spec.persistent)
        (self.state if kept else self.constants)[name] = tensor
        made_spec = InputSpec(spec.kind, TensorArgument(name=made.name), name, spec.persistent)
        self.signature.input_specs.insert(place + 1, made_spec)
        return made

    def _add_bias(self, own: fx.Node, bias: fx.Node) -> None:
        if aten_name(own) == "mm":
            own.target, own.args = torch.ops.aten.addmm.default, (bias, *own.args)
            return
        if aten_name(own) in ("bmm", "matmul"):
            self._add_behind(own, bias)
            return
        args = list(own.args)
        args += [None] * (BIAS_AT + 1 - len(args))
        args[BIAS_AT] = bias
        own.args = tuple(args)
        own.kwargs = {key: value for key, value in own.kwargs.items() if key != "bias"}

    def _add_behind(self, own: fx.Node, bias: fx.Node) -> None:
        with self.graph.inserting_after(own):
            added = self.graph.call_function(torch.ops.aten.add.Tensor, (own, bias))
        added.meta = dict(own.meta)
        own.replace_all_uses_with(added, delete_user_cb=lambda user: user is not added)
        self._renamed(own.name, added.name)

    # --- nodes

    def _bypass(self, norm: fx.Node) -> None:
        """Let all who read the norm read its input."""
        x = norm.args[0]
        assert isinstance(x, fx.Node)
        self.read_instead(norm, x)
        for user in list(norm.users):
            self.graph.erase_node(user)
        self.graph.erase_node(norm)

    def read_instead(self, old: fx.Node, new: fx.Node) -> None:
        """Let all who read the value of `old` read `new`."""
        value = value_of(old)
        value.replace_all_uses_with(new)
        self._renamed(value.name, new.name)

    def _renamed(self, old: str, new: str) -> None:
        self.signature.replace_all_uses(old, new)
        for value in (v for call in self.calls for v in _values(call) if v.name == old):
            value.name = new

    def forget(self, names: list[str]) -> None:
        """Drop tensors that nothing reads any more, with their places in the signature."""
        heads = {name.rpartition(".")[0] for name in names}
        names = [*names, *(f"{head}.num_batches_tracked" for head in heads)]
        for spec in [s for s in self.signature.input_specs if s.target in names]:
            node = next(n for n in self.graph.nodes if n.name == spec.arg.name)
            if not node.users:
                self.graph.erase_node(node)
                self.signature.input_specs.remove(spec)
                self.state.pop(spec.target, None)
                self.constants.pop(spec.target, None)

    def rebuilt(self) -> ExportedProgram:
        self.graph.lint()
        self.module.recompile()
        left = {node.name for node in self.graph.nodes}
        for call in self.calls:
            values = {value.name for value in _values(call)}
            if call.fqn and (len(values) < 2 or not values <= left):
                call.signature = None  # a norm that is gone, or one of several layers that are one now
        program = self.program
        return ExportedProgram(
            root=self.module,
            graph=self.graph,
            graph_signature=self.signature,
            state_dict=self.state,
            range_constraints=program.range_constraints,
            module_call_graph=self.calls,
            example_inputs=program.example_inputs,
            constants=self.constants,
            verifiers=[program.verifier],
        )


def _values(call: Any) -> list[Any]:
    """The tensors and sizes in the signature of a module's call; other arguments are no nodes."""
    signature = call.signature
    arguments = [] if signature is None else [*signature.inputs, *signature.outputs]
    return [a for a in arguments if isinstance(a, TensorArgument | SymIntArgument)]


def value_of(call: fx.Node) -> fx.Node:
    """The node that holds the value of a call: the first piece where it gives a tuple."""
    if aten_name(call) not in TUPLES:
        return call
    return next((u for u in call.users if u.target is operator.getitem and u.args[1] == 0), call)


def _vanishes(rewrite: Rewrite) -> bool:
    return rewrite.name == "bias" and rewrite.value is not None and not rewrite.value.any()


def _take_bias_away(own: fx.Node) -> None:
    if aten_name(own) == "addmm":
        own.target, own.args = torch.ops.aten.mm.default, own.args[1:3]
        return
    own.args = tuple(None if place == BIAS_AT else value for place, value in enumerate(own.args))
    own.kwargs = {key: value for key, value in own.kwargs.items() if key != "bias"}


def _bias_name(weight: str) -> str:
    head, dot, leaf = weight.rpartition(".")
    return f"{head}{dot}bias" if leaf == "weight" else f"{weight}_bias"


def _prefix(placeholder: str) -> str:
    """torch's letter for what is lifted: `p_` for a parameter, `b_` for a buffer, `c_` for a constant."""
    return placeholder[:2] if placeholder[:2] in ("p_", "b_", "c_") else ""


def _free(name: str, taken: set[str]) -> str:
    return name if name not in taken else _free(f"{name}_folded", taken)


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride())


def like(new: Tensor, old: Tensor) -> Tensor:
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
