"""Norms put into the user's own modules: a slot filled, a Sequential grown, a layer's place shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from bntool.edits import apply
from bntool.norms.kinds import KINDS
from bntool.norms.submodules import parent_of
from bntool.placing.options import Options, Planned
from bntool.placing.sites import Seen


@dataclass(frozen=True)
class Placed:
    """A norm in its place; `bias` is what it takes over from the layer, `word` what became of the bias."""

    planned: Planned
    norm: nn.Module
    bias: Tensor | None
    word: str


def put_all(model: nn.Module, sites: Sequence[Planned], seen: Seen, options: Options) -> list[Placed]:
    """Put all norms in, from behind, so that no place in a Sequential moves before it is used."""
    placed = [_put(model, planned, seen, options) for planned in reversed(sites)]
    return placed[::-1]


def _put(model: nn.Module, planned: Planned, seen: Seen, options: Options) -> Placed:
    site = planned.site
    layer = model.get_submodule(site.layer)
    sequence, index = sequence_of(model, site.at, seen)
    in_sequence = sequence is not None and not site.slot
    bias, word = taken_bias(layer, planned, options.bias or ("keep" if in_sequence else "drop"))
    if word == "dropped":
        apply(model, {"op": "drop_bias", "path": site.layer})
    if site.slot:
        path = site.slot
        apply(model, {"op": "replace", "path": path, "module": planned.spec})
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


def sequence_of(model: nn.Module, path: str, seen: Seen) -> tuple[str | None, int]:
    """The Sequential with plain indices, called once and whole, that holds `path`; the place in it."""
    parent, attribute = parent_of(model, path)
    plain = (
        isinstance(parent, nn.Sequential)
        and type(parent).forward is nn.Sequential.forward
        and list(parent._modules) == [str(i) for i in range(len(parent))]
        and len(seen.outputs.get(parent, ())) == 1
    )
    return (path.rpartition(".")[0], int(attribute)) if plain else (None, 0)


def taken_bias(layer: nn.Module, planned: Planned, wanted: str) -> tuple[Tensor | None, str]:
    """The bias the norm takes over, if it does, and what becomes of it."""
    bias = getattr(layer, "bias", None)
    if not isinstance(bias, Tensor):
        return None, "none"
    plain = isinstance(layer._parameters.get("bias"), nn.Parameter) and isinstance(layer, _ConvNd | nn.Linear)
    hidden = KINDS[planned.kind].hides_bias and planned.site.where == "before-activation"
    if wanted == "keep" or not plain or not hidden or planned.spec["type"].endswith("Gated"):
        return None, "kept"
    return bias.detach().clone(), "dropped"


def alike(norm: nn.Module, layer: nn.Module) -> nn.Module:
    """The norm with the mode, device and dtype of its layer."""
    weight = next(p for p in layer.parameters() if p.is_floating_point())
    return norm.to(device=weight.device, dtype=weight.dtype).train(layer.training)
