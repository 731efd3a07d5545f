"""Put norms into a model without changing what it computes.

y = (x - m) / sqrt(v + eps) * sqrt(v + eps) + m = x, with m and v the mean and variance of x over the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from bntool.algebra.affine import Blocked
from bntool.copying import copied
from bntool.edits import plan_of
from bntool.errors import UsageError, VerificationError
from bntool.globs import matches
from bntool.lazy import has_lazy_parts, insist_on_data, stand_ins
from bntool.norms.kinds import KINDS, choose, described
from bntool.norms.moments import Moments
from bntool.norms.submodules import names_of, state_kept
from bntool.placing import proof
from bntool.placing.entry import InsertEntry
from bntool.placing.flow import Flow, module_flow
from bntool.placing.graph_form import fill_slots, graph_sites, insist_on_graph, with_slots
from bntool.placing.key_map import key_owners, moved_keys
from bntool.placing.module_form import Placed, put_all
from bntool.placing.options import InsertReport, Options, Planned, check
from bntool.placing.seen import Seen, watch
from bntool.placing.sites import Question, Site, find
from bntool.placing.state import observe, random_calls, set_similar, set_unchanging
from bntool.pooling.batches import Call, calls, example_call
from bntool.progress import Progress
from bntool.result import Result

PROVEN_ON = 32
"""Samples the proof in eval mode runs on, or the first batch if that is larger."""
ROUNDING = 64
"""Machine epsilons of relative error that one inserted norm may add to an output."""


def insert_module(
    model: nn.Module,
    example_inputs: Any,
    *,
    data: Iterable[Any] | None,
    question: Question,
    options: Options,
    batch_size: int | None,
    inputs: int | None,
    dry_run: bool,
    progress: Progress,
) -> Result[nn.Module, InsertReport]:
    """A copy of `model` with norms in it, as `bntool.insert` has it.

    Raises: UsageError, RunError, VerificationError.
    """
    check(question, options, batch_size)
    insist_on_data(model)
    fresh = copied(model, stand_ins(model))
    example = example_call(fresh, example_inputs)
    work, source = _work(fresh, example, data, inputs)
    with state_kept(fresh), torch.no_grad():
        fresh.eval()
        seen = watch(fresh, example)  # lazy parts get their sizes here
        model = copied(fresh, {}) if has_lazy_parts(model) else model
        flow = module_flow(fresh, example, hooked_whole=options.form == "graph")
    candidates = (
        find(fresh, flow, seen, question) if options.form == "module" else graph_sites(flow, question)
    )
    size = batch_size or max(c.size for c in ([example] if data is None else work))
    sites, left_out = _described(candidates, options, size, example.size)
    samples = sum(c.size for c in work)
    report = InsertReport(question.where, options.init, options.form, source, size, len(work), samples)
    report = replace(report, left_out=left_out)
    if dry_run:
        entries = [InsertEntry("", p.site.layer, p.kind, p.channels, p.n_eff, p.why) for p in sites]
        return Result(fresh, replace(report, inserted=entries, notes=_unmatched(question, candidates)))
    before, alive = key_owners(fresh), fresh.state_dict(keep_vars=True)
    notes = _unmatched(question, candidates)
    if options.form == "module":
        placed, found = _into_modules(fresh, sites, flow, seen, work, options, progress)
    else:
        fresh, paths, known = with_slots(fresh, example, sites)
        notes += known
        insist_on_graph(fresh, example)
        placed, found = _into_graph(fresh, sites, paths, flow, work, options, progress)
    entries = _set(fresh, placed, found, options, len(work))
    keys = moved_keys(before, key_owners(fresh))
    del alive  # until here no other tensor could take the identity of a dropped one
    notes += _notes(entries, options)
    report = replace(report, inserted=entries, keys=keys, plan=plan_of(fresh), notes=notes)
    return Result(fresh, _proven(model, fresh, [p.norm for p in placed], work, options, report))


Filled = tuple[list[Placed], dict[str, Moments]]


def _into_modules(
    model: nn.Module,
    sites: Sequence[Planned],
    flow: Flow,
    seen: Seen,
    work: Sequence[Call],
    options: Options,
    progress: Progress,
) -> Filled:
    places = {p.site.layer: _place(model, p) for p in sites}
    found = observe(model, work, places, progress) if options.init == "preserve" else {}
    return put_all(model, sites, flow, seen, options), found


def _into_graph(
    model: fx.GraphModule,
    sites: Sequence[Planned],
    paths: Sequence[str],
    flow: Flow,
    work: Sequence[Call],
    options: Options,
    progress: Progress,
) -> Filled:
    pairs = zip(sites, paths, strict=True)
    slots = {p.site.layer: (model.get_submodule(path), False, p.channel_dim) for p, path in pairs}
    found = observe(model, work, slots, progress) if options.init == "preserve" else {}
    return fill_slots(model, sites, paths, flow, options), found


def _place(model: nn.Module, planned: Planned) -> tuple[nn.Module, bool, int]:
    """What is observed for a site: a module, whether its input counts, the dimension of the channels."""
    site = planned.site
    at = model.get_submodule(site.slot or site.at)
    return at, bool(site.slot) or site.where == "before-layer", planned.channel_dim


def _set(
    model: nn.Module, placed: Sequence[Placed], found: dict[str, Moments], options: Options, batches: int
) -> list[InsertEntry]:
    """Give every norm its state. Returns: the report's entries."""
    names = names_of(model)
    entries = []
    for one in placed:
        planned, dead = one.planned, 0
        layer = planned.site.layer
        if options.init == "preserve" and KINDS[planned.kind].preserves:
            dead = set_unchanging(one.norm, found[layer], one.bias, batches)
        elif options.init == "preserve" and not options.gated:
            set_similar(one.norm, found[layer])
        name = names[one.norm]
        entries.append(
            InsertEntry(
                name, layer, planned.kind, planned.channels, planned.n_eff, planned.why, one.word, dead
            )
        )
    return entries


def _work(
    model: nn.Module, example: Call, data: Iterable[Any] | None, inputs: int | None
) -> tuple[list[Call], str]:
    """The calls the statistics come from, and what they are in words."""
    if data is None:
        made = random_calls(example)
        random = f"{len(made) - 1} random batches like them"
        return made, f"the example inputs and {random}: give data for real statistics"
    given = len(example.args) if inputs is None and example.args else inputs
    work = [call for call in calls(model, data, inputs=given) if call.size]
    if not work:
        raise UsageError("the data is empty", where="insert", next="Give at least one batch.")
    return work, "the given data"


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
    if KINDS[kind].uses_batch and n_eff < 2:
        return Blocked(f"one value per channel at batch size {batch_size}: say the batch size you train with")
    made = (options.eps, options.momentum, options.groups, options.virtual_batch_size)
    spec = described(kind, site.setting.with_options(*made))
    if isinstance(spec, Blocked):
        return spec
    if options.gated and not KINDS[kind].preserves:
        spec = {"type": "bntool.norms.layers.Gated", "args": {"norm": spec}}
    return Planned(site, kind, spec, n_eff, why)


def _unmatched(question: Question, candidates: Sequence[Site]) -> list[str]:
    """A note on every glob that names nothing: a slip of the pen, most likely."""
    asked = () if question.slots else (*question.include, *question.exclude)
    idle = [glob for glob in asked if not any(matches(site.layer, (glob,)) for site in candidates)]
    return [f"no layer that could take a norm is called {glob}" for glob in idle]


def _notes(entries: Sequence[InsertEntry], options: Options) -> list[str]:
    notes = []
    if dead := sum(e.dead_channels for e in entries):
        notes.append(f"{dead} channels never vary on the data: dead, and passed on as they are")
    kinds = ", ".join(sorted({e.norm for e in entries if not KINDS[e.norm].preserves}))
    if kinds and options.gated:
        notes.append(f"{kinds} behind a gate that is closed: nothing changes until training opens it")
    elif kinds:
        notes.append(f"{kinds} norms cannot leave the function as it is: see how far the outputs moved")
    return notes


def _proven(
    model: nn.Module,
    fresh: nn.Module,
    norms: Sequence[nn.Module],
    work: Sequence[Call],
    options: Options,
    report: InsertReport,
) -> InsertReport:
    enough = max(1, PROVEN_ON // work[0].size)
    evaluated = proof.in_eval(model, fresh, work[:enough])
    trained = proof.in_train(model, fresh, norms, work) if norms else []
    preserving = options.init == "preserve" and all(KINDS[e.norm].preserves for e in report.inserted)
    weight = next((p for p in fresh.parameters() if p.is_floating_point()), torch.empty(0))
    allowed = torch.finfo(weight.dtype).eps * ROUNDING * (1 + len(norms))
    notes = report.notes
    if preserving and evaluated.max_rel_error > allowed:
        noise = proof.explained(model, fresh, work[:enough], allowed)
        if noise is None:
            what = f"the outputs moved by {evaluated.max_rel_error:.2g} of their size, not {allowed:.2g}"
            advice = "Insert fewer norms with include or exclude to find the layer."
            raise VerificationError(what, where="insert", next=advice)
        notes = [
            *notes,
            f"the model amplifies rounding: last bits of its weights move outputs by {noise:.1g}",
        ]
    return replace(report, eval=evaluated, train=trained, notes=notes)
