"""Put norms into a model without changing what it computes: y = (x - m) / sqrt(v + eps) * sqrt(v + eps) +
m.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from bntool.algebra.affine import Blocked
from bntool.edits import Edit, apply, plan_of
from bntool.errors import UsageError, VerificationError
from bntool.norms.kinds import KINDS, Spec, choose, described
from bntool.norms.submodules import modes_kept, names_of, parent_of
from bntool.placing import proof
from bntool.placing.flow import trace
from bntool.placing.key_map import key_owners, moved_keys
from bntool.placing.sites import WHERE, Question, Seen, Site, find, watch
from bntool.placing.state import observe, random_calls, set_similar, set_unchanging
from bntool.pooling.batches import Call, calls, example_call
from bntool.progress import Progress, silent
from bntool.result import SCHEMA_VERSION, Result

PROVEN_ON = 8
"""Batches the proof in eval mode runs on, at most."""
ROUNDING = 64
"""Machine epsilons of relative error that one inserted norm may add to an output."""


@dataclass(frozen=True)
class InsertEntry:
    """One norm that was put in: its qualified name, the layer it belongs to, its kind, n_eff = N * H * W.

    `bias` is "dropped" (into the norm), "kept" or "none"; `dead_channels` never vary on the data.
    """

    name: str
    layer: str
    norm: str
    channels: int
    n_eff: int
    why: str = ""
    bias: str = "none"
    dead_channels: int = 0


@dataclass(frozen=True)
class InsertReport:
    """What was inserted, what was left out and why, and how far the outputs moved.

    `keys` maps every old state-dict key to its new one (None: dropped), `keys_back` the other way; `plan`
    redoes
    the edit: `bntool.apply_plan(Net(), plan)`. `data` says what the statistics come from.
    """

    where: str
    init: str
    form: str
    data: str
    batch_size: int
    batches: int = 0
    samples: int = 0
    inserted: list[InsertEntry] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    eval: proof.EvalProof | None = None
    train: list[proof.TrainProof] = field(default_factory=list)
    keys: dict[str, str | None] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def keys_back(self) -> dict[str, str]:
        return {new: old for old, new in self.keys.items() if new is not None}

    def to_dict(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "keys_back": self.keys_back}


@dataclass(frozen=True)
class Options:
    """How norms are made and set."""

    norm: str = "batch"
    init: str = "preserve"
    form: str = "module"
    bias: str | None = None
    groups: int | None = None
    virtual_batch_size: int = 32
    eps: float = 1e-5
    momentum: float | None = 0.1
    gated: bool = False


def insert(
    model: nn.Module,
    example_inputs: Any,
    *,
    data: Iterable[Any] | None = None,
    norm: str = "batch",
    where: str = "before-activation",
    init: str = "preserve",
    form: str = "module",
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    layers: str | None = None,
    batch_size: int | None = None,
    bias: str | None = None,
    groups: int | None = None,
    virtual_batch_size: int = 32,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    gated: bool = False,
    inputs: int | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Result[nn.Module, InsertReport]:
    """A copy of `model` with norms in it. With init="preserve" it computes what `model` computes.

    norm: "batch", "sync", "group", "layer", "instance", "rms", "renorm", "ghost", "frozen", or "auto" by
    n_eff.
    where: "before-activation" (right behind the layer), "after-activation", "before-layer".
    layers: "conv", "linear", "all"; by default convolutions, or linears where the model has no convolution.
    batch_size: the batch the model will be trained with, which decides n_eff; by default the data's or
    example's.
    bias: "drop" or "keep" of biases that the norm hides; by default dropped, except where the norm went
    into a
    Sequential, whose keys then are those of the same network built with norms.
    gated: wrap norms that cannot preserve (group, layer, ...) in a gate that starts closed: no change at
    first.

    Raises: UsageError, VerificationError (a preserving norm moved the outputs more than rounding does).
    """
    question = Question(where, layers, tuple(include), tuple(exclude), form == "graph")
    options = Options(norm, init, form, bias, groups, virtual_batch_size, eps, momentum, gated)
    _check(question, options)
    fresh = copy.deepcopy(model)
    work, source = _work(fresh, example_inputs, data, inputs)
    with modes_kept(fresh), torch.no_grad():
        fresh.eval()
        example = example_call(fresh, example_inputs)
        seen = watch(fresh, example)
    candidates = find(fresh, trace(fresh, example), seen, question)
    size = batch_size or max(c.size for c in ([example] if data is None else work))
    sites, left_out = _described(candidates, options, size, example.size)
    report = InsertReport(
        where, init, form, source, size, len(work), sum(c.size for c in work), left_out=left_out
    )
    if dry_run:
        return Result(fresh, _planned(report, sites))
    return _inserted(model, fresh, sites, seen, work, options, report, progress)


def _check(question: Question, options: Options) -> None:
    allowed = {
        "norm": (options.norm, (*KINDS, "auto")),
        "where": (question.where, WHERE),
        "init": (options.init, ("preserve", "fresh")),
        "form": (options.form, ("module", "graph")),
        "layers": (question.layers, (None, "conv", "linear", "all")),
        "bias": (options.bias, (None, "drop", "keep")),
    }
    for name, (value, choices) in allowed.items():
        if value not in choices:
            known = ", ".join(str(c) for c in choices if c)
            raise UsageError(f"unknown {name} {value!r}", where="insert", next=f"Use one of {known}.")


def _work(
    model: nn.Module, example_inputs: Any, data: Iterable[Any] | None, inputs: int | None
) -> tuple[list[Call], str]:
    """The calls the statistics come from, and what they are in words."""
    example = example_call(model, example_inputs)
    if data is None:
        made = random_calls(example)
        return (
            made,
            f"the example inputs and {len(made) - 1} random batches like them: give data for real statistics",
        )
    given = len(example.args) if inputs is None and example.args else inputs
    work = list(calls(model, data, inputs=given))
    if not work:
        raise UsageError("the data is empty", where="insert", next="Give at least one batch.")
    return work, "the given data"


@dataclass(frozen=True)
class Planned:
    """A site with the norm that goes there."""

    site: Site
    kind: str
    spec: Spec
    n_eff: int
    why: str


def _described(
    candidates: Sequence[Site], options: Options, batch_size: int, example_size: int
) -> tuple[list[Planned], dict[str, str]]:
    planned, left_out = [], {}
    for site in candidates:
        found = _describe(site, options, batch_size, example_size)
        if isinstance(found, Blocked):
            left_out[site.layer] = found.reason
        else:
            planned.append(found)
    return planned, left_out


def _describe(site: Site, options: Options, batch_size: int, example_size: int) -> Planned | Blocked:
    if site.reason or site.setting is None:
        return Blocked(site.reason)
    n_eff = site.effective_batch(batch_size, example_size)
    kind, why = choose(n_eff, batch_size) if options.norm == "auto" else (options.norm, "")
    if KINDS[kind].preserves and kind != "frozen" and n_eff < 2:
        return Blocked(
            f"one value per channel at batch size {batch_size}: train with more, or say the batch size"
        )
    setting = site.setting.with_options(
        options.eps, options.momentum, options.groups, options.virtual_batch_size
    )
    spec = described(kind, setting)
    if isinstance(spec, Blocked):
        return spec
    if options.gated and not KINDS[kind].preserves:
        spec = {"type": "bntool.norms.layers.Gated", "args": {"norm": spec}}
    return Planned(site, kind, spec, n_eff, why)


def _planned(report: InsertReport, sites: Sequence[Planned]) -> InsertReport:
    entries = [InsertEntry("", p.site.layer, p.kind, _channels(p), p.n_eff, p.why) for p in sites]
    return _with(report, inserted=entries)


def _channels(planned: Planned) -> int:
    return planned.site.setting.channels if planned.site.setting else 0


def _with(report: InsertReport, **changes: Any) -> InsertReport:
    return InsertReport(**{**{k: getattr(report, k) for k in report.__dataclass_fields__}, **changes})


def _inserted(
    model: nn.Module,
    fresh: nn.Module,
    sites: Sequence[Planned],
    seen: Seen,
    work: Sequence[Call],
    options: Options,
    report: InsertReport,
    progress: Progress,
) -> Result[nn.Module, InsertReport]:
    places = {
        p.site.layer: (fresh.get_submodule(p.site.at), p.site.where == "before-layer", -1 if _last(p) else 1)
        for p in sites
    }
    found = observe(fresh, work, places, progress) if options.init == "preserve" else {}
    before, alive = key_owners(fresh), dict(fresh.state_dict(keep_vars=True))
    entries: list[tuple[nn.Module, InsertEntry]] = []
    for planned in reversed(sites):  # from behind: a place in a Sequential must not move before it is used
        norm, bias, word = _put(fresh, planned, seen, options)
        dead = 0
        if options.init == "preserve" and KINDS[planned.kind].preserves:
            dead = set_unchanging(norm, found[planned.site.layer], bias, len(work))
        elif options.init == "preserve" and not options.gated:
            set_similar(norm, found[planned.site.layer])
        site = planned.site
        entry = InsertEntry(
            "", site.layer, planned.kind, _channels(planned), planned.n_eff, planned.why, word, dead
        )
        entries.append((norm, entry))
    names = names_of(fresh)
    named = [InsertEntry(**{**asdict(e), "name": names[m]}) for m, e in reversed(entries)]
    keys = moved_keys(before, key_owners(fresh))
    del alive
    report = _with(report, inserted=named, keys=keys, plan=plan_of(fresh), notes=_notes(named, options))
    return Result(fresh, _proven(model, fresh, [m for m, _ in entries], work, options, report))


def _last(planned: Planned) -> bool:
    return planned.site.setting is not None and planned.site.setting.last


def _put(
    fresh: nn.Module, planned: Planned, seen: Seen, options: Options
) -> tuple[nn.Module, Tensor | None, str]:
    """Put the norm in its place. Returns: the norm, the bias it took over, what became of the bias in a
    word.
    """
    site = planned.site
    layer, at = fresh.get_submodule(site.layer), fresh.get_submodule(site.at)
    parent, attribute = parent_of(fresh, site.at)
    in_sequence = not site.slot and _is_sequence(parent, seen)
    ahead = site.where == "before-layer"
    wanted = options.bias or ("keep" if in_sequence else "drop")
    bias, word = _bias(layer, planned, wanted)
    if word == "dropped":
        apply(fresh, {"op": "drop_bias", "path": site.layer})
    if site.slot:
        apply(fresh, {"op": "replace", "path": site.slot, "module": planned.spec})
        return _like(fresh.get_submodule(site.slot), layer), bias, word
    if in_sequence:
        path, index = site.at.rpartition(".")[0], int(attribute) + (0 if ahead else 1)
        apply(fresh, {"op": "insert", "path": path, "index": index, "module": planned.spec})
        return _like(fresh.get_submodule(f"{path}.{index}" if path else str(index)), layer), bias, word
    edit: Edit = {"op": "attach", "path": site.at, "module": planned.spec, "ahead": ahead}
    apply(fresh, edit)
    assert at is fresh.get_submodule(f"{site.at}.layer")
    return _like(fresh.get_submodule(f"{site.at}.norm"), layer), bias, word


def _like(norm: nn.Module, layer: nn.Module) -> nn.Module:
    """The norm with mode, device and dtype of the layer, whatever the module had that it was built after."""
    weight = next(p for p in layer.parameters() if p.is_floating_point())
    return norm.to(device=weight.device, dtype=weight.dtype).train(layer.training)


def _is_sequence(parent: nn.Module, seen: Seen) -> bool:
    """Whether `parent` is a Sequential with plain indices that is called as a whole."""
    return (
        isinstance(parent, nn.Sequential)
        and type(parent).forward is nn.Sequential.forward
        and list(parent._modules) == [str(i) for i in range(len(parent))]
        and len(seen.outputs.get(parent, ())) == 1
    )


def _bias(layer: nn.Module, planned: Planned, wanted: str) -> tuple[Tensor | None, str]:
    """The bias the norm takes over, if it does, and what becomes of it."""
    bias = getattr(layer, "bias", None)
    if not isinstance(bias, Tensor):
        return None, "none"
    plain = isinstance(layer._parameters.get("bias"), nn.Parameter) and isinstance(layer, _ConvNd | nn.Linear)
    hidden = KINDS[planned.kind].hides_bias and planned.site.where == "before-activation"
    if wanted == "keep" or not plain or not hidden or planned.spec["type"].endswith("Gated"):
        return None, "kept"
    return bias.detach().clone(), "dropped"


def _notes(entries: Sequence[InsertEntry], options: Options) -> list[str]:
    notes = []
    if dead := sum(e.dead_channels for e in entries):
        notes.append(
            f"{dead} channels never vary on the data: they are dead, and their norms pass them on as they are"
        )
    kinds = sorted({e.norm for e in entries if not KINDS[e.norm].preserves})
    if kinds and options.gated:
        notes.append(
            f"{', '.join(kinds)} behind a gate that is closed: nothing changes until training opens it"
        )
    elif kinds:
        notes.append(
            f"{', '.join(kinds)} norms cannot leave the function as it is: see how far the outputs moved"
        )
    return notes


def _proven(
    model: nn.Module,
    fresh: nn.Module,
    norms: Sequence[nn.Module],
    work: Sequence[Call],
    options: Options,
    report: InsertReport,
) -> InsertReport:
    evaluated = proof.in_eval(model, fresh, work[:PROVEN_ON])
    trained = proof.in_train(model, fresh, norms, work) if norms else []
    preserving = options.init == "preserve" and all(KINDS[e.norm].preserves for e in report.inserted)
    weight = next((p for p in fresh.parameters() if p.is_floating_point()), torch.empty(0))
    allowed = torch.finfo(weight.dtype).eps * ROUNDING * (1 + len(norms))
    if preserving and evaluated.max_rel_error > allowed:
        raise VerificationError(
            f"the outputs moved by {evaluated.max_rel_error:.2g} of their size, not {allowed:.2g}",
            where="insert",
            next="Insert fewer norms with include or exclude to find the layer.",
        )
    return _with(report, eval=evaluated, train=trained)
