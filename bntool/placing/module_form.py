"""Norms put into the user's own modules: a slot filled, a Sequential grown, a layer's place shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from bntool.edits import apply
from bntool.graphs.fx_hooks import has_hooks
from bntool.norms.kinds import KINDS
from bntool.norms.submodules import parent_of
from bntool.placing.flow import Flow, within
from bntool.placing.options import Options, Planned
from bntool.placing.seen import Seen
from bntool.placing.sites import paths_of
from bntool.specs import first_tensor


@dataclass(frozen=True)
class Placed:
    """A norm in its place; `bias` is what it takes over from the layer, `word` what became of the bias."""

    planned: Planned
    norm: nn.Module
    bias: Tensor | None
    word: str


def put_all(
    model: nn.Module, sites: Sequence[Planned], flow: Flow, seen: Seen, options: Options
) -> list[Placed]:
    """Put all norms in, from behind, so that no place in a Sequential moves before it is used."""
    places = [sequence_of(model, planned.site.at, flow, seen) for planned in sites]
    taken = [
        taken_bias(model.get_submodule(p.site.layer), p, flow, options.bias or _usual(model, p, sequence))
        for p, (sequence, _) in zip(sites, places, strict=True)
    ]
    todo = reversed(list(zip(sites, places, taken, strict=True)))
    return [_put(model, planned, place, bias) for planned, place, bias in todo][::-1]


def _usual(model: nn.Module, planned: Planned, sequence: str | None) -> str:
    """A network built with norms in a Sequential has biases too; a folded one has had what folding left."""
    if planned.site.slot:
        had = bool(paths_of(model, "drop_norm")) and planned.site.layer not in paths_of(model, "add_bias")
        return "keep" if had else "drop"
    return "keep" if sequence is not None else "drop"


def _put(
    model: nn.Module, planned: Planned, place: tuple[str | None, int], taken: tuple[Tensor | None, str]
) -> Placed:
    site, (sequence, index), (bias, word) = planned.site, place, taken
    layer = model.get_submodule(site.layer)
    if word == "dropped":
        apply(model, {"op": "drop_bias", "path": site.layer})
    if site.slot:
        path = site.slot
        kept = {"op": "undrop_norm", "keeps": list(site.keeps)} if site.keeps else {"op": "replace"}
        apply(model, {**kept, "path": path, "module": planned.spec})
    elif sequence is not None:
        path = _grow(model, planned, sequence, index)
    else:
        path = _attach(model, planned)
    return Placed(planned, alike(model.get_submodule(path), layer), bias, word)


def _grow(model: nn.Module, planned: Planned, sequence: str, index: int) -> str:
    index += planned.site.where != "before-layer"
    apply(model, {"op": "insert", "path": sequence, "index": index, "module": planned.spec})
    return f"{sequence}.{index}" if sequence else str(index)


def _attach(model: nn.Module, planned: Planned) -> str:
    at, ahead = planned.site.at, planned.site.where == "before-layer"
    apply(model, {"op": "attach", "path": at, "module": planned.spec, "ahead": ahead})
    return f"{at}.norm"


def sequence_of(model: nn.Module, path: str, flow: Flow, seen: Seen) -> tuple[str | None, int]:
    """The Sequential with plain indices, called once and whole, that holds `path`; the place in it.

    None where somebody takes things from it by their indices, which a norm would move.
    """
    parent, attribute = parent_of(model, path)
    inside = path.rpartition(".")[0]
    plain = (
        isinstance(parent, nn.Sequential)
        and type(parent).forward is nn.Sequential.forward
        and list(parent._modules) == [str(i) for i in range(len(parent))]
        and len(seen.outputs.get(parent, ())) == 1
        and not any(_taken_out(f"{inside}.{i}".lstrip("."), m, flow, seen) for i, m in enumerate(parent))
    )
    return (inside, int(attribute)) if plain else (None, 0)


def _taken_out(path: str, item: nn.Module, flow: Flow, seen: Seen) -> bool:
    """Whether others than the Sequential call its item at `path`, or read a tensor of it."""
    if item in seen.by_hand and len(flow.names(item)) == 1:  # else it may be called by its other name
        return True
    users = (user for tensor in item.parameters() for _, user in flow.readers(tensor))
    return any(not within(flow.path_of(user), path) for user in users)


def taken_bias(layer: nn.Module, planned: Planned, flow: Flow, wanted: str) -> tuple[Tensor | None, str]:
    """The bias the norm takes over, if it does, and what becomes of it."""
    bias = getattr(layer, "bias", None)
    if not isinstance(bias, Tensor):
        return None, "none"
    plain = isinstance(layer._parameters.get("bias"), nn.Parameter) and isinstance(layer, _ConvNd | nn.Linear)
    hidden = KINDS[planned.kind].hides_bias and planned.site.where == "before-activation"
    if wanted == "keep" or not plain or not hidden or planned.spec["type"].endswith("Gated"):
        return None, "kept"
    if has_hooks(layer):  # they are given the layer and what it gives
        return None, "kept"
    if any(not _is_its_bias(read, user, planned.site.layer, flow) for read, user in flow.readers(bias)):
        return None, "kept"
    return bias.detach().clone(), "dropped"


def _is_its_bias(read: fx.Node, user: fx.Node, layer: str, flow: Flow) -> bool:
    """Whether the layer's own forward uses what was read as its bias, and so does without one."""
    argument = user.args[2] if len(user.args) > 2 else user.kwargs.get("bias")
    return argument is read and flow.role(user) == "layer" and within(flow.path_of(user), layer)


def alike(norm: nn.Module, layer: nn.Module) -> nn.Module:
    """The norm with the mode, device and dtype of its layer, where that has any."""
    weight = first_tensor(layer)
    made = norm if weight is None else norm.to(device=weight.device, dtype=weight.dtype)
    return made.train(layer.training)
