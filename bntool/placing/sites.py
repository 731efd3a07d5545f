"""Where norms can go: every candidate layer of a model with its place, or with the reason why not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from bntool.edits import recorded
from bntool.globs import matches, selected
from bntool.norms.kinds import Setting
from bntool.placing.flow import (
    Flow,
    called,
    down,
    dropout_before,
    layer_after,
    norm_after,
    norm_before,
    reads_input,
    value_readers,
    within,
)
from bntool.placing.seen import Seen

LAYERS = (_ConvNd, nn.Linear)
KINDS_OF: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": (_ConvNd,),
    "linear": (nn.Linear,),
    "all": LAYERS,
}
MOVES = ("flatten", "reshape", "view", "transpose", "permute", "unsqueeze", "squeeze", "contiguous")
"""Calls that a folded norm's Identity may be behind."""
WHERE = ("before-activation", "after-activation", "before-layer")


@dataclass(frozen=True)
class Site:
    """One candidate. A norm goes there unless `reason` says why not.

    `layer` is the layer's qualified name and `at` that of the module behind which the norm goes (ahead of
    which, with where="before-layer"): the layer, or its activation. `slot` is what a folded norm leaves where
    it was and this one goes: an Identity, or the activation that was part of it. `values` is how many values
    a channel has in the example inputs.
    """

    layer: str
    at: str
    where: str
    setting: Setting | None = None
    values: int = 0
    slot: str = ""
    keeps: tuple[str, ...] = ()
    """What stands in the slot besides: the dropout, the activation that ran in the norm's own class."""
    reason: str = ""
    node: fx.Node | None = None
    """Graph form: the node behind which (ahead of which) the norm goes."""

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
    slots: bool = False
    """Un-fold: if folding left Identities behind layers, norms go there and nowhere else.

    Where bntool did not fold the model itself, Identities count if most layers have one.
    """


def find(model: nn.Module, flow: Flow, seen: Seen, question: Question) -> list[Site]:
    """All candidates in the model's own order."""
    finder = _Finder(model, flow, seen, question)
    sites = [finder.site(n, m) for n, m in model.named_modules() if isinstance(m, LAYERS)]
    free = [site for site in sites if not site.reason]
    slots = [site for site in free if site.slot]
    slots += finder.without_layer({site.slot for site in slots})
    if not question.slots or not slots:
        return sites
    if not finder.emptied and 2 * len(slots) <= len(free):  # the Identities are the model's own
        return find(model, flow, seen, replace(question, slots=False))
    back = {site.slot for site in slots}
    kept = [s if s.reason or s.slot or finder.had_one(s.layer, back) else _never(s) for s in sites]
    return [*kept, *(s for s in slots if s.layer == s.slot)]


def _never(site: Site) -> Site:
    return replace(site, reason="no norm was folded away here")


def paths_of(model: nn.Module, op: str) -> set[str]:
    """Where bntool did this to the model: "add_bias" where a norm went in, "drop_norm" where one was."""
    return {edit["path"] for edit in recorded(model) if edit["op"] == op}


def wanted_word(kind: str) -> str:
    """Why a layer of this kind is left out when the other kind is asked for."""
    if kind == "linear":
        return "a linear layer in a model with convolutions; layers='all' gives it a norm"
    return "a convolution; layers='conv' or 'all' gives it a norm"


class _Finder:
    """Judges the layers of one model, one after the other."""

    def __init__(self, model: nn.Module, flow: Flow, seen: Seen, question: Question) -> None:
        self.model, self.flow, self.seen, self.question = model, flow, seen, question
        has_conv = any(isinstance(m, _ConvNd) and m in seen.outputs for m in model.modules())
        default = "all" if question.include else "conv" if has_conv else "linear"
        self.kinds = KINDS_OF[question.layers or default]
        self.modules = dict(model.named_modules())
        self.took = paths_of(model, "add_bias") if question.slots else set()
        self.emptied = paths_of(model, "drop_norm") if question.slots else set()
        self.left = dict(self._left()) if question.slots else {}

    def site(self, name: str, module: nn.Module) -> Site:
        site = Site(name, name, self.question.where)
        nodes = self.flow.calls_of(name)
        if nodes and self.question.where == "before-activation":
            slot = self._slot(nodes[0])
            site = replace(site, slot=slot, keeps=self.left.get(slot, ()))
        reason = self._not_asked(site, module) or self._by_run(site, module, nodes)
        if reason:
            return replace(site, reason=reason)
        if not nodes:
            return replace(site, reason="it is inside a part of the model that cannot be analysed")
        if site.where == "after-activation":
            site = self._behind_activation(site, nodes[-1])
        reason = site.reason or by_flow(site, self.flow, nodes, last=module is self.seen.last)
        if not reason and not self.flow.only_called(site.at):
            reason = "code that cannot be traced runs it, and may do more with it than that"
        return replace(site, reason=reason) if reason else self._sized(site, module)

    def _left(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """What norms left in their places, and as what it was theirs, but for Identities."""
        dropped = [edit for edit in recorded(self.model) if edit["op"] == "drop_norm" and edit["keeps"]]
        for edit in dropped:
            module = self.modules.get(edit["path"])
            if module is not None and len(self.flow.names(module)) == 1:
                yield edit["path"], tuple(edit["keeps"])

    def had_one(self, layer: str, back: set[str]) -> bool:
        """Whether a norm went into the layer that does not come back in a place of its own further down."""
        starts = self.flow.calls_of(layer)
        reached = (node for start in starts for node in down(start, self._bends))
        return layer in self.took and not any(self.flow.path_of(node) in back for node in reached)

    def _bends(self, node: fx.Node) -> bool:
        return self.flow.role(node) in ("layer", "activation", "norm", "output")

    def without_layer(self, taken: set[str]) -> list[Site]:
        """The places of norms that went into the layer behind them, or further: no layer to speak of."""
        free = sorted(self.emptied - taken)
        where = self.question.where
        sites = [Site(path, path, where, slot=path, keeps=self.left.get(path, ())) for path in free]
        return [self._sized(site, identity) for site in sites if (identity := self._idle(site)) is not None]

    def _idle(self, site: Site) -> nn.Module | None:
        """The Identity that stands there, if the norm can go back to it."""
        identity = self.modules.get(site.slot)  # None where the norm had a place only as long as it was there
        if identity is None:
            return None
        inputs = self.seen.inputs.get(identity, [])
        alike = len({tuple(value.shape[2:]) for value in inputs}) == 1
        asked = selected(site.slot, self.question.include, self.question.exclude)
        empty = type(identity) is nn.Identity or site.slot in self.left
        return identity if empty and alike and asked else None

    def _not_asked(self, site: Site, module: nn.Module) -> str:
        if matches(site.layer, self.question.exclude):
            return "excluded"
        if not selected(site.layer, self.question.include, ()):
            return "not included"
        folded = self.question.slots and (site.slot or site.layer in self.took)
        if isinstance(module, self.kinds) or folded:
            return ""
        return wanted_word("linear" if isinstance(module, nn.Linear) else "conv")

    def _by_run(self, site: Site, module: nn.Module, nodes: Sequence[fx.Node]) -> str:
        """Reasons that show when the example inputs run."""
        outputs = self.seen.outputs.get(module, [])
        if not outputs:
            return "the example inputs do not reach it"
        if len(outputs) > 1:
            return self._shared(site, outputs, nodes)
        if module in self.seen.extra:
            return "called with more than one argument"
        if isinstance(module, _ConvNd) and outputs[0].dim() != len(module.kernel_size) + 2:
            return "its input has no batch dimension"
        return ""

    def _shared(self, site: Site, outputs: Sequence[Tensor], nodes: Sequence[fx.Node]) -> str:
        """A layer that is called more than once; un-folding gives a shared norm back to a shared layer."""
        if nodes and (norm := norm_after(self.flow, nodes[0])) is not None:
            return f"already normalised by {self.flow.path_of(norm) or called(norm)}"
        shapes = {tuple(o.shape[2:]) for o in outputs}
        if site.slot and self.question.slots and len(shapes) == 1:
            return ""
        over = f" over {len(shapes)} sizes" if len(shapes) > 1 else ""
        return f"shared: called {len(outputs)} times{over}, each with statistics of its own"

    def _behind_activation(self, site: Site, node: fx.Node) -> Site:
        users = list(node.users)
        act = users[0] if len(users) == 1 and self.flow.role(users[0]) == "activation" else None
        if act is None:
            return replace(site, reason="no activation follows it alone")
        module, path = self.flow.module(act), self.flow.path_of(act)
        if module is None:
            return replace(site, reason=f"its activation is a call of {called(act)}{self._other_form()}")
        if len(self.seen.outputs.get(module, ())) > 1:
            return replace(site, reason=f"its activation {path} is called several times{self._other_form()}")
        return replace(site, at=path)

    def _other_form(self) -> str:
        return ": use form='graph'" if self.flow.executed is None else ""

    def _slot(self, node: fx.Node) -> str:
        """What a norm has left behind the layer, if that alone reads it, and is called as often."""
        users = value_readers(node) if self.question.slots else []
        while len(users) == 1 and called(users[0]) in MOVES and not self._place(users[0]):
            users = value_readers(users[0])
        places = {self._place(user) for user in users}
        path = places.pop() if len(places) == 1 else ""
        layer = self.flow.module(node)
        if not path or layer is None:
            return ""
        calls = len(self.seen.outputs.get(self.model.get_submodule(path), ()))
        return path if calls == len(self.seen.outputs.get(layer, ())) else ""

    def _place(self, node: fx.Node) -> str:
        """The Identity that the node is, or the rest of a norm that it is part of; not the model's own."""
        path = self.flow.path_of(node)
        if type(self.flow.module(node)) is nn.Identity:
            return path if path in self.emptied or not self.emptied else ""
        return next((place for place in self.left if within(path, place)), "")

    def _sized(self, site: Site, layer: nn.Module) -> Site:
        if site.slot:
            value = self.seen.inputs[self.model.get_submodule(site.slot)][0]
        else:
            values = self.seen.inputs if site.where == "before-layer" else self.seen.outputs
            value = values[self.model.get_submodule(site.at)][0]
        kind = "norm" if site.slot else "linear" if isinstance(layer, nn.Linear) else "conv"
        named = bool(site.slot or self.question.include or site.layer in self.took)
        if not named and (reason := tied(site, self.flow, layer._parameters.get("weight"))):
            return replace(site, reason=reason)
        return with_sizes(site, value, kind, named=named, asked=named or bool(self.question.layers))


def with_sizes(site: Site, value: Tensor, kind: str, *, named: bool, asked: bool) -> Site:
    """The site with the sizes of what its norm would read, or with the reason why it has to be asked for.

    `kind` is the layer's, "norm" where one was folded away; `named`: this layer was asked for; `asked`: its
    kind of layer was.
    """
    last = kind == "linear" and value.dim() > 2
    if last and not asked:
        return replace(site, reason="linear over (*, features), as in transformers: name it to ask for it")
    channels = value.shape[-1 if last else 1]
    per_sample = value.numel() // (value.shape[0] * channels)
    if kind == "conv" and per_sample == 1 and not named:
        return replace(site, reason="its map is one value per sample, as in a squeeze-and-excite gate")
    setting = Setting(channels, value.dim(), last, per_sample)
    return replace(site, setting=setting, values=value.numel() // channels)


def tied(site: Site, flow: Flow, weight: Any) -> str:
    """Why a layer is left out whose weight is not its own; empty where it is."""
    others = flow.sharers(weight, site.layer) if isinstance(weight, Tensor) else []
    if not others or site.where == "after-activation":  # where it folds into what comes behind
        return ""
    return f"its weight is {others[0]}'s too, so its norm would not fold away again: name it to ask for it"


def by_flow(site: Site, flow: Flow, nodes: Sequence[fx.Node], *, last: bool) -> str:
    """Reasons that lie in where values come from and go to."""
    for node in nodes:
        if not site.slot and (last or not layer_after(flow, node)):
            return "the output layer: no layer comes after it"
        ahead = site.where == "before-layer"
        if (norm := norm_before(flow, node) if ahead else norm_after(flow, node)) is not None:
            return f"already normalised by {flow.path_of(norm) or called(norm)}"
        if ahead and reads_input(flow, node):
            return "it reads the model's input"
        if not site.slot and (drop := dropout_before(flow, node)) is not None:
            where = flow.path_of(drop) or called(drop)
            return f"after the dropout {where}, which shifts the variance between training and eval"
    return ""
