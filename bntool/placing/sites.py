"""Where norms can go: every candidate layer of a model with its place, or with the reason why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from bntool.norms.kinds import Setting
from bntool.norms.submodules import matches, selected
from bntool.placing.flow import (
    Flow,
    called,
    dropout_before,
    layer_after,
    norm_after,
    norm_before,
    reads_input,
)
from bntool.pooling.batches import Call

WHERE = ("before-activation", "after-activation", "before-layer")


@dataclass(frozen=True)
class Site:
    """One candidate. A norm goes there unless `reason` says why not.

    `layer` is the layer's qualified name and `at` that of the module behind which the norm goes (ahead of
    which,
    with where="before-layer"): the layer, or its activation. `slot` is an Identity that stands where the norm
    goes, as a folded norm leaves it. `values` is how many values a channel has in the example inputs.
    """

    layer: str
    at: str
    where: str
    setting: Setting | None = None
    values: int = 0
    slot: str = ""
    reason: str = ""

    def effective_batch(self, batch_size: int, example_size: int) -> int:
        """N * H * W: how many values per channel a norm here has its statistics from."""
        return self.values * batch_size // example_size


@dataclass(frozen=True)
class Question:
    """What is asked for: where the norms go, on which layers."""

    where: str = "before-activation"
    layers: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    functional: bool = False
    """Whether function calls can be given norms too (graph form)."""


class Seen:
    """What the modules of a model took and gave in one run, and how often they ran."""

    def __init__(self) -> None:
        self.inputs: dict[nn.Module, list[Tensor]] = {}
        self.outputs: dict[nn.Module, list[Tensor]] = {}
        self.extra: set[nn.Module] = set()
        self.last: nn.Module | None = None
        """The layer that ran last."""

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        first = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(module, _ConvNd | nn.Linear):
            self.last = module
        if len(args) + len(kwargs) > 1:
            self.extra.add(module)
        for values, value in ((self.inputs, first), (self.outputs, output)):
            sizes = value.detach().to("meta") if isinstance(value, Tensor) else torch.empty(0, device="meta")
            values.setdefault(module, []).append(sizes)


def watch(model: nn.Module, call: Call) -> Seen:
    """Run `call` and note what every module took and gave."""
    seen = Seen()
    handles = [m.register_forward_hook(seen.note, with_kwargs=True) for m in model.modules()]
    try:
        call.run(model)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def find(model: nn.Module, flow: Flow, seen: Seen, question: Question) -> list[Site]:
    """All candidates in the model's own order."""
    kinds = _asked_for(model, seen, question)
    names = [(n, m) for n, m in model.named_modules() if isinstance(m, _ConvNd | nn.Linear)]
    return [_site(model, flow, seen, question, kinds, name, module) for name, module in names]


def _asked_for(model: nn.Module, seen: Seen, question: Question) -> tuple[type[nn.Module], ...]:
    by_name: dict[str, tuple[type[nn.Module], ...]] = {
        "conv": (_ConvNd,),
        "linear": (nn.Linear,),
        "all": (_ConvNd, nn.Linear),
    }
    if question.layers is not None:
        return by_name[question.layers]
    if question.include:
        return by_name["all"]
    has_conv = any(isinstance(m, _ConvNd) and m in seen.outputs for m in model.modules())
    return by_name["conv" if has_conv else "linear"]


def _site(
    model: nn.Module,
    flow: Flow,
    seen: Seen,
    question: Question,
    kinds: tuple[type[nn.Module], ...],
    name: str,
    module: nn.Module,
) -> Site:
    site = Site(name, name, question.where)
    nodes = flow.calls_of(name)
    reason = _not_asked(site, module, question, kinds) or _by_run(module, seen, flow, nodes)
    if reason:
        return replace(site, reason=reason)
    if not nodes:
        return replace(site, reason="it is inside a part of the model that cannot be analysed")
    site = _placed(site, flow, nodes[0])
    if site.reason:
        return site
    reason = _by_flow(site, flow, nodes, last=module is seen.last)
    return replace(site, reason=reason) if reason else _sized(site, model, seen, question)


def _not_asked(site: Site, module: nn.Module, question: Question, kinds: tuple[type[nn.Module], ...]) -> str:
    if matches(site.layer, question.exclude):
        return "excluded"
    if not selected(site.layer, question.include, ()):
        return "not included"
    if isinstance(module, kinds):
        return ""
    if isinstance(module, nn.Linear):
        return "a linear layer in a model with convolutions; layers='all' gives it a norm"
    return "a convolution; layers='conv' or 'all' gives it a norm"


def _by_run(module: nn.Module, seen: Seen, flow: Flow, nodes: Sequence[fx.Node]) -> str:
    """Reasons that show when the example inputs run."""
    outputs = seen.outputs.get(module, [])
    if not outputs:
        return "the example inputs do not reach it"
    if len(outputs) > 1 and nodes and (norm := norm_after(flow, nodes[0])) is not None:
        return f"already normalised by {flow.path_of(norm)}"
    if len(outputs) > 1:
        shapes = sorted({tuple(o.shape[2:]) for o in outputs})
        over = f" over {len(shapes)} sizes" if len(shapes) > 1 else ""
        return f"shared: called {len(outputs)} times{over}, each with statistics of its own"
    if module in seen.extra:
        return "called with more than one argument"
    if isinstance(module, _ConvNd) and outputs[0].dim() != len(module.kernel_size) + 2:
        return "its input has no batch dimension"
    return ""


def _placed(site: Site, flow: Flow, node: fx.Node) -> Site:
    """With the slot or the activation that belongs to the layer."""
    if site.where == "before-activation":
        return replace(site, slot=_slot(flow, node))
    if site.where == "before-layer":
        return site
    users = list(node.users)
    act = users[0] if len(users) == 1 and flow.role(users[0]) == "activation" else None
    if act is None:
        return replace(site, reason="no activation follows it alone")
    if act.op != "call_module":
        return replace(site, reason=f"its activation is a call of {called(act)}: use form='graph'")
    if len(flow.calls_of(flow.path_of(act))) > 1:
        return replace(
            site, reason=f"its activation {flow.path_of(act)} is called several times: use form='graph'"
        )
    return replace(site, at=flow.path_of(act))


def _slot(flow: Flow, node: fx.Node) -> str:
    """The Identity that alone reads the layer, if there is one and it is called once."""
    users = list(node.users)
    if len(users) != 1 or type(flow.module(users[0])) is not nn.Identity:
        return ""
    path = flow.path_of(users[0])
    identity = flow.module(users[0])
    same = [n for n in flow.nodes() if flow.module(n) is identity]
    return path if len(same) == 1 else ""


def _by_flow(site: Site, flow: Flow, nodes: Sequence[fx.Node], *, last: bool) -> str:
    """Reasons that lie in where values come from and go to."""
    for node in nodes:
        if not site.slot and (last or not layer_after(flow, node)):
            return "the output layer: no layer comes after it"
        if (norm := norm_after(flow, node)) is not None and site.where != "before-layer":
            return f"already normalised by {flow.path_of(norm)}"
        if (norm := norm_before(flow, node)) is not None and site.where == "before-layer":
            return f"already normalised by {flow.path_of(norm)}"
        if site.where == "before-layer" and reads_input(flow, node):
            return "it reads the model's input"
        if (drop := dropout_before(flow, node)) is not None:
            return (
                f"after the dropout {flow.path_of(drop)}, which shifts the variance between training and eval"
            )
    return ""


def _sized(site: Site, model: nn.Module, seen: Seen, question: Question) -> Site:
    layer = model.get_submodule(site.layer)
    values = seen.inputs if site.where == "before-layer" else seen.outputs
    value = values[model.get_submodule(site.at)][0]
    last = isinstance(layer, nn.Linear) and value.dim() > 2
    if last and not (question.layers or question.include):
        return replace(
            site, reason="a linear layer over (*, features), as transformers have: name it to ask for it"
        )
    channels = value.shape[-1 if last else 1]
    per_sample = value.numel() // (value.shape[0] * channels)
    squeezed = isinstance(layer, _ConvNd) and per_sample == 1
    if squeezed and not (site.slot or question.include):
        return replace(site, reason="its map is one value per sample, as in a squeeze-and-excite gate")
    setting = Setting(channels, value.dim(), last, per_sample)
    return replace(site, setting=setting, values=value.numel() // channels)
