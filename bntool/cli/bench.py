"""`bntool bench A B ...`: latency against a baseline, with an interval, a verdict and a gate."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bntool import config
from bntool.cli import bench_options as of
from bntool.cli import common, screen
from bntool.cli.bench_output import Files, deliver

if TYPE_CHECKING:
    from bntool.bench.request import Request


@common.command
def bench(
    models: of.Models = None,
    case: of.Case = None,
    inputs: common.Inputs = None,
    weights: common.Weights = None,
    trust: common.Trust = False,
    runtime: of.Runtime = None,
    batch: of.Batch = "",
    threads: of.Threads = 1,
    device: of.Device = "cpu",
    dtype: of.Dtype = "",
    channels_last: of.ChannelsLast = False,
    mode: of.Mode = "infer",
    profile: of.Profile = False,
    flush_l2: of.FlushL2 = False,
    tolerance: of.Tolerance = "5%",
    floor: of.Floor = "0ms",
    min_speedup: of.MinSpeedup = "",
    max_norms: of.MaxNorms = None,
    max_ops: of.MaxOps = None,
    max_bytes: of.MaxBytes = "",
    max_params: of.MaxParams = "",
    max_macs: of.MaxMacs = "",
    max_error: of.MaxError = None,
    on_inconclusive: of.OnInconclusive = "pass",
    budget: of.Budget = "10s",
    precision: of.Precision = "",
    replicates: of.Replicates = None,
    confidence: of.Confidence = "95%",
    no_confirm: of.NoConfirm = False,
    allocator: of.Allocator = "fixed",
    timeout: of.Timeout = "10m",
    seed: of.Seed = 0,
    against: of.Against = "",
    python: of.Python = None,
    baseline: of.Baseline = None,
    save_baseline: of.SaveBaseline = None,
    self_test: of.SelfTest = False,
    as_json: common.AsJson = False,
    csv: of.Csv = None,
    markdown: of.Markdown = None,
    junit: of.Junit = None,
    html: of.Html = None,
    history: of.History = None,
    force: common.Force = False,
    dry_run: common.DryRun = False,
) -> int:
    """Time models against the first one.

    Interleaved in fresh processes; each gets a ratio with an interval, and a verdict.

    The gate fails (exit 1) when a model is slower for certain and by more than --tolerance, twice in a row;
    exit 5 is inconclusive (--on-inconclusive exit5), 6 an output error above --max-error. Without models,
    the cases in [tool.bntool.bench.cases] run.
    """
    options = dict(locals())
    files = Files(csv, markdown, junit, html, history, save_baseline)
    files.check(force=force)
    request = request_of(options)
    if dry_run:
        return announce(request, as_json)
    with leaving_nothing(), screen.progress_bar() as progress:
        comparison, stored = request.run(progress)
    return deliver(comparison, stored, files, as_json=as_json, force=force, profile=profile)


@contextmanager
def leaving_nothing() -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C, so that workers and temporary folders go too."""

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def request_of(options: dict[str, Any]) -> Request:
    """What was asked for, with every number read. Raises: UsageError."""
    from bntool.bench.request import Request

    settings, _ = config.read()
    return Request.from_options(options, settings)


def announce(request: Request, as_json: bool) -> int:
    """What would be timed, and nothing run."""
    planned = request.planned()
    if as_json:
        screen.emit_json({"schema_version": 1, "cases": planned})
        return 0
    rows = [(c["name"], name) for c in planned for name in c["candidates"]]
    screen.table(("case", "model"), rows)
    return 0
