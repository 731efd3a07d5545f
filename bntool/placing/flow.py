"""Where values of a traced model go: from a layer down to norms and outputs, and up to dropouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.nn.modules import activation, dropout
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from bntool.norms.layers import FrozenBatchNorm
from bntool.norms.stand_in import NormAct

LAYERS = (_ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm, FrozenBatchNorm, NormAct)
GATED = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax)
ACTIVATIONS = tuple(
    kind
    for name in activation.__all__
    if isinstance(kind := getattr(activation, name), type) and kind not in GATED
)
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
    """A model's graphs (one for each way its control flow goes, or for each part that traces)."""

    model: nn.Module
    graphs: list[fx.Graph]
    blind: list[str] = field(default_factory=list)
    """Modules that do not trace: what is inside them is not known."""

    def nodes(self) -> Iterator[fx.Node]:
        for graph in self.graphs:
            yield from graph.nodes

    def calls_of(self, path: str) -> list[fx.Node]:
        return [n for n in self.nodes() if n.op == "call_module" and n.target == path]

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def role(self, node: fx.Node) -> str:
        """ "layer", "norm", "dropout", "activation", "add", "output", or "pass" for anything else."""
        if node.op == "output":
            return "output"
        if (module := self.module(node)) is not None:
            return role_of_module(module)
        return role_of_call(node) if node.op in ("call_function", "call_method") else "pass"


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
    return any(flow.role(n) == "layer" for n in down(node, lambda n: flow.role(n) == "layer"))


def norm_after(flow: Flow, node: fx.Node) -> fx.Node | None:
    """The norm that already normalises this value before anything bends it.

    Through an addition only if every other use of the sum is normalised too: a residual stream that ends
    in one
    norm far below is not normalised by it.
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


class _Tracer(fx.Tracer):
    """Layers, norms and activations are leaves whatever their class; everything else is seen through."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or isinstance(
            m, (*LAYERS, *NORMS, *ACTIVATIONS)
        )


def trace(model: nn.Module, example: Any = None) -> Flow:
    """The flow of `model`; of its parts where the whole does not trace."""
    flow = Flow(model, [])
    _trace_part(flow, model, "")
    return flow


def _trace_part(flow: Flow, part: nn.Module, path: str) -> None:
    try:
        graph = _Tracer().trace(part)
    except Exception:  # the tracer raises whatever the model's code does with a proxy
        flow.blind.append(path)
        for name, child in part.named_children():
            _trace_part(flow, child, f"{path}.{name}" if path else name)
        return
    for node in graph.nodes:
        if node.op == "call_module" and path:
            node.target = f"{path}.{node.target}"
    flow.graphs.append(graph)
