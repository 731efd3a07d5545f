"""What bntool changed in a module, as small JSON edits that can be applied again to a fresh copy of it.

Weights are saved as tensors; the edits carry the structure they belong to. A verb changes a module only
through `apply`, which performs one edit and records it on the root module. So a model that was folded or
inserted into knows its own plan, copies of it keep it, and saving writes it:

    {"schema_version": 1,
     "edits": [{"op": "replace", "path": "bn1", "module": {"type": "torch.nn.Identity"}}]}

An operation is one row of OPS. Edits never carry code: a module is a class of torch.nn or of bntool with
literal arguments. Values come from the weights; an edit only makes tensors of the right shape.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from bntool.errors import LoadError
from bntool.graphs.fx_baked import bake
from bntool.graphs.walk import modules_in
from bntool.norms.layers import BatchNormAct
from bntool.norms.stand_in import NormAct, Normed, StandIn
from bntool.specs import build, first_tensor
from bntool.tracing import as_graph, call_at, note, restored

SCHEMA_VERSION = 1
_RECORD = "_bntool_edits"
_LEFT = "_bntool_left_plan"

Edit = Mapping[str, Any]


def apply(model: nn.Module, edit: Edit) -> nn.Module:
    """Perform one edit on `model` in place, and record it there.

    Returns: the model; with "trace" the graph that takes its place.
    Raises: LoadError when it does not fit.
    """
    if edit.get("op") not in OPS:
        raise LoadError(f"unknown edit {edit.get('op')!r} in the plan", next="It needs a newer bntool.")
    result = OPS[edit["op"]](model, edit) or model
    record(result, edit)
    return result


def record(model: nn.Module, *edits: Edit) -> None:
    """Note edits that were performed otherwise."""
    if not edits:
        return
    note(model, _RECORD, [*recorded(model), *map(dict, edits)])


def recorded(model: nn.Module) -> list[dict[str, Any]]:
    """The edits made to this module since its own class built it."""
    return list(model.__dict__.get(_RECORD, ()))


def leave_plan(model: nn.Module) -> None:
    """Note that it has become what no edits make: a folded graph, a module with merged layers."""
    note(model, _LEFT, True)


def has_plan(model: nn.Module) -> bool:
    """Whether its edits lead to it from what its own class builds."""
    return _LEFT not in model.__dict__


def plan_of(model: nn.Module) -> dict[str, Any]:
    """The JSON document that `apply_plan` takes."""
    return {"schema_version": SCHEMA_VERSION, "edits": recorded(model)}


def apply_plan(model: nn.Module, plan: Mapping[str, Any] | str | Path) -> nn.Module:
    """Give a freshly built model, in place, the structure that the plan's edits made.

    Edits with which the plan begins and which were made to the model already are not made again.
    Returns: the model; for a plan of graph form the graph that takes its place.
    `plan` is the document, or a JSON file: of the plan alone, or of a report or bundle that has one.

    Raises: LoadError when the plan is damaged, newer than this bntool, or does not fit the model.
    """
    if isinstance(plan, str | Path):
        plan = _read(Path(plan))
    if not isinstance(plan, Mapping) or plan.get("schema_version") != SCHEMA_VERSION:
        raise LoadError(
            "the plan is not one this bntool can read", next="It needs another version of bntool."
        )
    edits = plan.get("edits")
    if not isinstance(edits, list) or not all(isinstance(edit, Mapping) for edit in edits):
        raise LoadError("the plan is damaged: its edits are not a list")
    done = recorded(model)
    if edits[: len(done)] == done:  # the model's own factory made them
        edits = edits[len(done) :]
    return _apply_all(model, edits)


def _read(path: Path) -> Any:
    """The plan in a file."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as problem:
        advice = "Write one with json.dump(result.report.plan, file)."
        raise LoadError(f"no plan can be read ({problem})", where=str(path), next=advice) from problem
    inner = document.get("plan") if isinstance(document, dict) else None
    return inner if isinstance(inner, dict) else document


def _apply_all(model: nn.Module, edits: Iterable[Edit]) -> nn.Module:
    for edit in edits:
        try:
            model = apply(model, edit)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as problem:
            what = f"the edit {edit.get('op')!r} does not fit the model ({problem})"
            advice = "Name the factory, with the arguments, that the model was made with."
            raise LoadError(what, where=str(edit.get("path", "")), next=advice) from problem
    return model


def detach_idle(model: nn.Module) -> None:
    """Give layers whose attached norm was folded away their places back, and so their old keys."""
    idle = [
        (path, m) for path, m in modules_in(model) if isinstance(m, Normed) and type(m.norm) is nn.Identity
    ]
    exchange(model, {id(module): module.inner for _, module in idle})
    record(model, *({"op": "detach", "path": path} for path, _ in reversed(idle)))


# --- the operations


def _replace(model: nn.Module, edit: Edit) -> None:
    """{"op": "replace", "path", "module", "keeps"}: put another module where one was, under all of its names.

    `keeps` (optional) says that the new norm goes on with the old one's dropout and activation.
    """
    old = model.get_submodule(edit["path"])
    new = _in_place_of(old, model, edit)
    if edit.get("keeps"):
        new = NormAct(new, *(old.get_submodule(part) for part in ("drop", "act")))
    if not becomes(old, new):
        exchange(model, {id(old): new})


def _in_place_of(old: nn.Module, model: nn.Module, edit: Edit) -> nn.Module:
    new = build(edit["module"], like=old)
    if first_tensor(old) is None and (other := first_tensor(model)) is not None:
        new.to(device=other.device, dtype=other.dtype)
    return new


def exchange(model: nn.Module, new: Mapping[int, nn.Module]) -> None:
    """Put other modules where those are whose ids are given, under all of their names, and in plain lists."""
    for parent in [m for _, m in modules_in(model)] if new else ():
        for name, child in parent._modules.items():
            while id(child) in new:
                parent._modules[name] = child = new[id(child)]
        for name, value in parent.__dict__.items():
            if type(value) in (list, tuple, dict):
                parent.__dict__[name] = _exchanged(value, new)


def _exchanged(value: Any, new: Mapping[int, nn.Module]) -> Any:
    """A value with other modules in it; lists and dictionaries stay the objects that they are."""
    if isinstance(value, nn.Module):
        while id(value) in new:
            value = new[id(value)]
    elif type(value) is tuple:
        inside = tuple(_exchanged(v, new) for v in value)
        value = value if all(map(operator.is_, inside, value)) else inside
    elif type(value) is list:
        value[:] = [_exchanged(v, new) for v in value]
    elif type(value) is dict:
        value |= {key: _exchanged(v, new) for key, v in value.items()}
    return value


def nothing_of(norm: nn.Module) -> nn.Identity:
    """What a norm that is gone leaves: its mode, and the numbers and flags that code around it may read."""
    left = nn.Identity()
    kept = {name: value for name, value in norm.__dict__.items() if type(value) in (int, float, bool, str)}
    left.__dict__ |= kept
    return left


def left_of(norm: nn.Module, parts: Sequence[nn.Module]) -> nn.Module:
    """What stands in a folded norm's place: the `parts` that it ran after normalising, if there are any."""
    if not parts:
        return nothing_of(norm)
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


def becomes(old: nn.Module, new: nn.Module) -> bool:
    """A module itself is another one from now on, wherever it is held: in an object, a partial, a tuple.

    Returns: whether it is; one of a class with slots cannot be.
    """
    try:
        old.__class__ = type(new)
    except TypeError:
        return False
    old.__dict__ = new.__dict__
    return True


def _insert(model: nn.Module, edit: Edit) -> None:
    """{"op": "insert", "path", "index", "module"}: put a module into a Sequential; later indices move up."""
    sequence = model.get_submodule(edit["path"])
    if type(sequence).forward is not nn.Sequential.forward or not isinstance(sequence, nn.Sequential):
        raise TypeError("not a Sequential")
    sequence.insert(edit["index"], build(edit["module"], like=sequence))


def _attach(model: nn.Module, edit: Edit) -> None:
    """{"op": "attach", "path", "module", "ahead"}: a norm behind (ahead of) a layer, both in the layer's
    place.
    """
    layer = model.get_submodule(edit["path"])
    norm = build(edit["module"], like=layer)
    exchange(model, {id(layer): Normed(layer, norm, ahead=edit.get("ahead", False))})


def _detach(model: nn.Module, edit: Edit) -> None:
    """{"op": "detach", "path"}: a layer is back in its place, without what was attached to it."""
    stand_in = model.get_submodule(edit["path"])
    if not isinstance(stand_in, StandIn):
        raise TypeError("nothing is attached there")
    exchange(model, {id(stand_in): stand_in.inner})


def _drop_norm(model: nn.Module, edit: Edit) -> None:
    """{"op": "drop_norm", "path", "keeps"}: a norm is gone, but for the children it ran after normalising."""
    old = model.get_submodule(edit["path"])
    parts = [old.get_submodule(name) for name in edit["keeps"]]
    left = left_of(old, parts)
    if parts or not becomes(old, left):
        exchange(model, {id(old): left})


def _undrop_norm(model: nn.Module, edit: Edit) -> None:
    """{"op": "undrop_norm", "path", "module", "keeps"}: a norm is back, ahead of what `drop_norm` left of
    one: a batch norm with the keys that it had.
    """
    left, names = model.get_submodule(edit["path"]), edit["keeps"]
    parts = dict(zip(names, [left] if len(names) == 1 else left.children(), strict=True))
    new = _in_place_of(left, model, edit)
    drop, act = (parts.get(name, nn.Identity()) for name in ("drop", "act"))
    if isinstance(new, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        exchange(model, {id(left): BatchNormAct(new, drop, act)})
    else:
        exchange(model, {id(left): NormAct(new, drop, act)})


def _bake(model: nn.Module, edit: Edit) -> None:
    """{"op": "bake", "path"}: tensors that are computed for every call become plain ones."""
    bake(model.get_submodule(edit["path"]))


def _add_bias(model: nn.Module, edit: Edit) -> None:
    """{"op": "add_bias", "path", "size"}: a layer gets a bias, zeros until weights are loaded."""
    layer = model.get_submodule(edit["path"])
    weight: torch.Tensor = layer.weight  # type: ignore[assignment]  # (a parametrised one is no parameter)
    zeros = torch.zeros(edit["size"], dtype=weight.dtype, device=weight.device)
    layer.bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)


def _drop_bias(model: nn.Module, edit: Edit) -> None:
    """{"op": "drop_bias", "path"}: a layer loses its bias."""
    model.get_submodule(edit["path"]).register_parameter("bias", None)


def _trace(model: nn.Module, edit: Edit) -> nn.Module:
    """{"op": "trace", "inputs"}: a graph takes the place of the whole model."""
    return as_graph(model, restored(edit["inputs"]))[0]


def _call(model: nn.Module, edit: Edit) -> None:
    """{"op": "call", "node", "ahead", "path", "module", "like"}: a graph calls a module on a node's value
    (ahead: on what its node reads); `like` is the module whose dtype, device and mode it gets.
    """
    if not isinstance(model, fx.GraphModule):
        raise TypeError("not a graph")
    new = build(edit["module"], like=model.get_submodule(edit["like"]))
    call_at(model, edit["node"], edit["path"], new, ahead=edit["ahead"])


OPS: dict[str, Callable[[nn.Module, Edit], nn.Module | None]] = {
    "trace": _trace,
    "call": _call,
    "replace": _replace,
    "insert": _insert,
    "attach": _attach,
    "detach": _detach,
    "drop_norm": _drop_norm,
    "undrop_norm": _undrop_norm,
    "bake": _bake,
    "add_bias": _add_bias,
    "drop_bias": _drop_bias,
}
