"""`bntool study`: what batch norm does for a model, measured; seven verdicts and a report."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bntool.cli import common, screen
from bntool.cli import study_options as of
from bntool.errors import UsageError

if TYPE_CHECKING:
    from bntool.progress import Progress

#: options that change neither the trials nor their results
_PRESENTATION = (
    "output",
    "tensorboard",
    "run_dir",
    "resume",
    "force",
    "dry_run",
    "as_json",
    "workers",
    "ray",
)
SUFFIXES = (".html", ".md", ".json")


@common.command
def study(
    model: common.ModelRef,
    data: of.Data = "digits",
    output: of.Output = None,
    claims: of.Claims = "all",
    norms: of.Norms = "none,batch,group,layer",
    seeds: of.Seeds = None,
    budget: of.Budget = "3m",
    tier: of.Tier = None,
    seed: of.Seed = 0,
    vary: of.Vary = "",
    batch_size: of.BatchSize = 32,
    target: of.Target = 0.0,
    optimizer: of.Optimizer = "sgd",
    loss: of.LossFn = "",
    inputs: common.Inputs = None,
    trust: common.Trust = False,
    workers: of.Workers = None,
    ray: of.Ray = None,
    device: of.Device = "cpu",
    bf16: of.Bf16 = False,
    run_dir: of.RunDir = None,
    resume: of.Resume = False,
    tensorboard: of.Tensorboard = None,
    force: common.Force = False,
    dry_run: common.DryRun = False,
    as_json: common.AsJson = False,
) -> None:
    """Measure what norms do for training.

    Trains the model with and without norms, many times, and tests seven claims about them.

    Each claim comes out shown, not shown, reversed or inconclusive, with its size and an interval. Finished
    trials are kept: after an interrupt, the same command with --resume goes on.
    """
    options = dict(locals())
    check_output(output, force=force)
    folder = run_dir or default_folder(options)
    settings = study_settings(options)
    if dry_run:
        announce(model, settings, as_json=as_json)
        return
    with screen.progress_bar() as progress:
        document = run(model, settings, folder, resume, tensorboard, progress)
    if output is not None:
        write(document, output, force=force)
    if as_json:
        screen.emit_json(document)
    else:
        show(document, output)


def check_output(output: Path | None, *, force: bool) -> None:
    """Raises: UsageError for a report that could not be written in the end."""
    if output is None:
        return
    from bntool.sources.writing import check_target

    if output.suffix not in SUFFIXES:
        raise UsageError(
            f"no report has the suffix {output.suffix!r}", where="-o", next="Use .html, .md, .json."
        )
    check_target(output, force=force)


def default_folder(options: Mapping[str, Any]) -> Path:
    """A folder in the user's cache that belongs to this study: model, data and options."""
    asked = {k: str(v) for k, v in options.items() if k not in _PRESENTATION}
    name = hashlib.sha256(json.dumps([asked, os.getcwd()], sort_keys=True).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "bntool" / "study" / name


def study_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of bntool.study. Raises: UsageError, LoadError for a loss that is not there."""
    same = (
        "data",
        "claims",
        "norms",
        "seeds",
        "budget",
        "tier",
        "seed",
        "vary",
        "batch_size",
        "target",
        "optimizer",
        "trust",
    )
    found = {name: options[name] for name in (*same, "workers", "ray", "device")}
    found["autocast"] = options["bf16"]
    if options["loss"]:
        found["loss_fn"] = own_loss(options["loss"])
    if options["inputs"]:
        from bntool.sources import inputs as inputs_of

        given = inputs_of.torch_inputs(inputs_of.parse_input(text) for text in options["inputs"])
        found["example_inputs"] = tuple(given.values()) if isinstance(given, dict) else given
    return found


def own_loss(text: str) -> Any:
    from bntool.sources import python_ref
    from bntool.sources.importing import import_place
    from bntool.sources.refs import PythonRef, parse

    ref = parse(text)
    if not isinstance(ref, PythonRef):
        raise UsageError(f"{text} names no function", where="--loss", next="Write file.py:function.")
    return python_ref.find(import_place(ref), ref)


def announce(model: str, settings: dict[str, Any], *, as_json: bool) -> None:
    """What would be run and how long it would take."""
    from bntool.study.study import planned

    wishes = {k: v for k, v in settings.items() if k not in ("ray", "device", "autocast")}
    with screen.progress_bar() as progress:
        found = planned(model, progress=progress, **wishes).to_dict()
    if as_json:
        screen.emit_json(found)
        return
    plan = found["plan"]
    screen.facts(
        [
            ("model", found["model"]),
            ("data", found["data"]),
            *(("", note) for note in found["notes"]),
            ("claims", ", ".join(plan["claims"])),
            (
                "tier",
                f"{plan['tier']}: {plan['steps']} steps, {plan['seeds']} seeds, {len(plan['rates'])} rates",
            ),
            ("trials", f"about {found['trials']} on {found['workers']} workers"),
            ("time", f"about {found['expected_s']:.0f} s"),
        ]
    )


def run(
    model: str,
    settings: dict[str, Any],
    folder: Path,
    resume: bool,
    tensorboard: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    from bntool import study

    watch = None
    if tensorboard is not None:
        from bntool.study.tensorboard import Logs

        watch = Logs(tensorboard)
    try:
        found = study(model, run_dir=folder, resume=resume, watch=watch, progress=progress, **settings)
    except KeyboardInterrupt:
        screen.warn("finished trials are kept; the same command with --resume goes on from there")
        raise
    document: dict[str, Any] = screen.plain(found.to_dict())
    return document


def write(document: dict[str, Any], output: Path, *, force: bool) -> None:
    from bntool.report.study_html import study_page
    from bntool.report.study_markdown import study_markdown
    from bntool.sources.writing import beside

    if output.suffix == ".json":
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    else:
        text = study_page(document) if output.suffix == ".html" else study_markdown(document)
    with beside(output, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8")


def show(document: dict[str, Any], output: Path | None) -> None:
    """The verdicts as a table, then what follows."""
    for note in document["notes"]:
        screen.note(f"note: {note}")
    rows = [(c["number"], c["question"], c["verdict"], c["headline"]) for c in document["claims"]]
    screen.table(("", "claim", "verdict", "measured"), rows)
    told = document["recommendation"]
    screen.say(f"recommendation: {told['norm']}")
    for sentence in told["sentences"]:
        screen.say(f"- {sentence}")
    screen.say(
        f"written: {output}" if output else "no report written: pass -o report.html for plots and details"
    )
