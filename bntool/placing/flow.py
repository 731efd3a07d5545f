"""Where values of a traced model go: from a layer down to norms and outputs, and up to dropouts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, fx, nn
from torch.nn.modules import dropout
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from bntool.errors import RunError
from bntool.graphs.fx_calls import tensor_key
from bntool.graphs.fx_leaves import ACTIVATIONS, LEAVES
from bntool.graphs.fx_ways import Way
from bntool.graphs.islands import module_graph
from bntool.norms.layers import FrozenBatchNorm
from bntool.norms.stand_in import NormAct
from bntool.placing.executed import executed_way
from bntool.pooling.batches import Call

LAYERS = (_ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm, FrozenBatchNorm, NormAct)
LAYER_CALLS = ("conv", "linear", "bilinear", "embedding", "addmm")
NORM_CALLS = ("batch_norm", "group_norm", "layer_norm", "instance_norm", "rms_norm", "local_response_norm")
ACTIVATION_CALLS = tuple(
    name + ending
    for name in (
        "relu", "relu6", "gelu", "silu", "elu", "celu", "selu", "leaky_relu", "prelu", "rrelu", "mish",
        "tanh", "sigmoid", "hardtanh", "hardswish", "hardsigmoid", "logsigmoid", "softplus", "softsign",
        "tanhshrink",
        "clamp", "clip",
    )
    for ending in ("", "_")
)  # fmt: skip
ADDS = ("add", "add_", "iadd", "__iadd__", "sub")


@dataclass
class Flow:
    """Every way through a model, and the parts of it that trace where the whole does not.

    `executed` is then the way that the example went, through all of it; `called_there` are the single layers
    that code which cannot be traced calls, and does nothing else with.
    """

    model: nn.Module
    ways: Sequence[Way]
    executed: Way | None = None
    called_there: Collection[str] = ()

    def nodes(self) -> Iterator[fx.Node]:
        for way in self.ways:
            yield from way.graph.nodes

    @cached_property
    def every(self) -> list[Way]:
        return [*self.ways, *([] if self.executed is None else [self.executed])]

    def only_called(self, path: str) -> bool:
        """Whether nothing is done with a module but calling it, as far as code can be seen at all."""
        return path in self.called_there or any(self._last_of(way, path) for way in self.ways)

    def calls_of(self, path: str) -> list[fx.Node]:
        """The nodes that hold what the module at `path` gave, one for every way through it."""
        return [node for way in self.every if (node := self._last_of(way, path)) is not None]

    def _last_of(self, way: Way, path: str) -> fx.Node | None:
        inside = [n for n in way.graph.nodes if n.op != "output" and within(self.path_of(n), path)]
        return inside[-1] if inside else None

    def path_of(self, node: fx.Node) -> str:
        """The module that was running when this node's value was made; the module itself for a call of it."""
        return _joined(self._way(node).prefix, str(node.meta.get("at", "")))

    def _way(self, node: fx.Node) -> Way:
        return next(way for way in self.every if way.graph is node.graph)

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.model.get_submodule(self.path_of(node)) if node.op == "call_module" else None

    def is_island(self, node: fx.Node) -> bool:
        """Whether the node is in a part whose surroundings are not known."""
        return bool(self._way(node).prefix)

    def readers(self, tensor: Tensor) -> list[tuple[fx.Node, fx.Node]]:
        """Every node that reads a parameter otherwise than by calling its module, with who uses that."""
        return self._readers.get(id(tensor), [])

    @cached_property
    def _readers(self) -> dict[int, list[tuple[fx.Node, fx.Node]]]:
        found: dict[int, list[tuple[fx.Node, fx.Node]]] = defaultdict(list)
        for way in self.every:
            for node in way.graph.nodes:
                if node.op == "get_attr":
                    found[id(way.sizes.tensor(str(node.target)))] += [(node, user) for user in node.users]
        return found

    def sharers(self, weight: Tensor, layer: str) -> list[str]:
        """Who else than the layer at a path (in graph form, the node of a name) computes with its weight."""
        modules = [name for name in self._holders[tensor_key(weight)] if name != layer]
        users = [user for _, user in self.readers(weight) if user.name != layer]
        others = [user for user in users if not within(self.path_of(user), layer)]
        return [*modules, *(self.path_of(user) or called(user) for user in others)]

    @cached_property
    def _holders(self) -> dict[Hashable, list[str]]:
        """Layers by the memory of the parameters that are their own."""
        found: dict[Hashable, list[str]] = defaultdict(list)
        for name, module in self.model.named_modules():
            for parameter in module._parameters.values() if isinstance(module, LAYERS) else ():
                if parameter is not None and not is_lazy(parameter):
                    found[tensor_key(parameter)].append(name)
        return found

    def names(self, module: nn.Module) -> list[str]:
        """Every qualified name of a module."""
        return self._names[module]

    @cached_property
    def _names(self) -> dict[nn.Module, list[str]]:
        found: dict[nn.Module, list[str]] = defaultdict(list)
        for name, module in self.model.named_modules(remove_duplicate=False):
            found[module].append(name)
        return found

    def role(self, node: fx.Node) -> str:
        """ "layer", "norm", "dropout", "activation", "add", "output", or "pass" for anything else."""
        if node.op == "output":
            return "output"
        if (module := self.module(node)) is not None:
            return role_of_module(module)
        return role_of_call(node) if node.op in ("call_function", "call_method") else "pass"


def within(at: str, path: str) -> bool:
    """Whether `at` is the module at `path` or inside it."""
    return at == path or at.startswith(path + ".")


def _joined(prefix: str, path: str) -> str:
    return ".".join(part for part in (prefix, path) if part)


def module_flow(model: nn.Module, example: Call | None, *, hooked_whole: bool = False) -> Flow:
    """The flow of `model` as the example calls it; forks on data are followed both ways.

    Code that cannot be traced is known by how the example went through it, besides the parts that can.
    With `hooked_whole` modules with hooks are not looked into: a graph that is run would lose the hooks.
    """
    inputs = None if example is None else (example.args, example.kwargs)
    graph = module_graph(model, inputs, leaves=LEAVES, hooked_whole=hooked_whole, as_given=True)
    executed = None
    if graph.dark and example is not None:
        with suppress(RunError):  # what it raises when it is watched like that is not the user's matter
            executed = executed_way(model, example, _is_whole)
    return Flow(model, graph.ways, executed, graph.called_there)


def _is_whole(module: nn.Module) -> bool:
    return isinstance(module, (*LAYERS, *NORMS, *LEAVES)) or role_of_module(module) == "norm"


def role_of_module(module: nn.Module) -> str:
    if isinstance(module, NORMS) or type(module).__name__.startswith("FrozenBatchNorm"):
        return "norm"
    if isinstance(module, dropout._DropoutNd):
        return "dropout" if module.p > 0 else "pass"
    if isinstance(module, ACTIVATIONS):
        return "activation"
    return "layer" if isinstance(module, LAYERS) or any(True for _ in module.parameters()) else "pass"


def role_of_call(node: fx.Node) -> str:
    name = called(node)
    if name in ("matmul", "bmm", "einsum") and any(n.op == "get_attr" for n in node.all_input_nodes):
        return "layer"
    if name.startswith(LAYER_CALLS):
        return "layer"
    if name in NORM_CALLS:
        return "norm"
    if "dropout" in name:
        return "dropout"
    if name in ACTIVATION_CALLS:
        return "activation"
    return "add" if name in ADDS else "pass"


def called(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).rpartition(".")[2]


Stop = Callable[[fx.Node], bool]


def down(node: fx.Node, stop: Stop) -> Iterator[fx.Node]:
    """Every node a value reaches, not going on behind those where `stop` holds."""
    return _reach(node, lambda n: list(n.users), stop)


def up(node: fx.Node, stop: Stop) -> Iterator[fx.Node]:
    """Every node a value comes from, not going on above those where `stop` holds."""
    return _reach(node, lambda n: n.all_input_nodes, stop)


def value_readers(node: fx.Node) -> list[fx.Node]:
    """Who reads a value, but for those that only ask how large it is."""
    return [user for user in node.users if not _asks_sizes(user, node)]


def _asks_sizes(user: fx.Node, node: fx.Node) -> bool:
    name = called(user)
    if name in ("reshape_as", "view_as", "expand_as"):
        return user.args[0] is not node
    return name in ("size", "dim", "numel") or (name == "getattr" and user.args[1] in ("shape", "ndim"))


def _reach(start: fx.Node, step: Callable[[fx.Node], list[fx.Node]], stop: Stop) -> Iterator[fx.Node]:
    seen: set[fx.Node] = set()
    todo = step(start)
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            yield node
            if not stop(node):
                todo.extend(step(node))


def layer_after(flow: Flow, node: fx.Node) -> bool:
    """Whether another layer reads this value; taken for granted where it leaves the part that is known."""
    if flow.is_island(node):
        return True
    return any(flow.role(n) == "layer" for n in down(node, lambda n: flow.role(n) == "layer"))


def norm_after(flow: Flow, node: fx.Node) -> fx.Node | None:
    """The norm that already normalises this value before anything bends it.

    Through an addition only if every other use of the sum is normalised too: a residual stream that ends in
    one norm far below is not normalised by it.
    """
    bends = ("layer", "activation", "norm", "output")
    near = list(down(node, lambda n: flow.role(n) in (*bends, "add")))
    direct = next((n for n in near if flow.role(n) == "norm"), None)
    if direct is not None:
        return direct
    ends = [n for n in down(node, lambda n: flow.role(n) in bends) if flow.role(n) in bends]
    return ends[0] if ends and all(flow.role(n) == "norm" for n in ends) else None


def norm_before(flow: Flow, node: fx.Node) -> fx.Node | None:
    """The norm whose output this reads, with nothing but an activation in between."""
    reached = up(node, lambda n: flow.role(n) in ("layer", "norm", "add"))
    return next((n for n in reached if flow.role(n) == "norm"), None)


def dropout_before(flow: Flow, node: fx.Node) -> fx.Node | None:
    """A dropout between this layer and the layer or norm before it."""
    reached = up(node, lambda n: flow.role(n) in ("layer", "norm", "dropout"))
    return next((n for n in reached if flow.role(n) == "dropout"), None)


def reads_input(flow: Flow, node: fx.Node) -> bool:
    """Whether nothing but data movement lies between the model's input and this layer."""
    reached = list(up(node, lambda n: flow.role(n) in ("layer", "norm", "activation")))
    return all(flow.role(n) == "pass" for n in reached)
