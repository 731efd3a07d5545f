"""The options of `bntool bench`, as types; what each is for stands in its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

MODELS = "The baseline, then the others: MODEL, MODEL@onnx or MODEL@compile(threads=2)."
Models = Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help=MODELS, show_default=False)]
Case = Annotated[
    list[str] | None, typer.Option("--case", metavar="GLOB", help="Without models: only these cases.")
]

Runtime = Annotated[
    list[str] | None,
    typer.Option(
        "--runtime",
        "--runtimes",
        metavar="NAME",
        help="eager, compile, aoti, onnx, openvino; repeatable or with commas: a case each.",
    ),
]
Batch = Annotated[str, typer.Option("--batch", metavar="N,...", help="Batch sizes, as 1,8,32: a case each.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="Intra-op threads; 0: the runtime's own.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str, typer.Option("--dtype", help="Cast models and inputs: bfloat16, float16, ...")]
ChannelsLast = Annotated[bool, typer.Option("--channels-last", help="Models and images in channels-last.")]
Mode = Annotated[Literal["infer", "train"], typer.Option("--mode", help="train: forward, backward, step.")]
Profile = Annotated[bool, typer.Option("--profile", help="Also say which operators take the time.")]
FlushL2 = Annotated[bool, typer.Option("--flush-l2", help="CUDA: empty the L2 cache before each sample.")]

Tolerance = Annotated[str, typer.Option("--tolerance", metavar="SHARE", help="A slowdown that fails.")]
Floor = Annotated[
    str, typer.Option("--floor", metavar="TIME", help="Smaller differences never matter, as 0.1ms.")
]
MinSpeedup = Annotated[
    str, typer.Option("--min-speedup", metavar="FACTOR", help="Fail unless this much faster, as 1.2x.")
]
MaxNorms = Annotated[int | None, typer.Option("--max-norms", help="Fail with more norms than this left.")]
MaxOps = Annotated[int | None, typer.Option("--max-ops", help="Fail with more operators in a forward.")]
MaxBytes = Annotated[str, typer.Option("--max-bytes", metavar="SIZE", help="Fail if larger, as 12MB.")]
MaxParams = Annotated[str, typer.Option("--max-params", metavar="N", help="Fail with more parameters.")]
MaxMacs = Annotated[str, typer.Option("--max-macs", metavar="N", help="Fail with more multiplications.")]
MaxError = Annotated[
    float | None,
    typer.Option("--max-error", help="Exit 6 if outputs differ by more, relative to the largest."),
]
OnInconclusive = Annotated[
    Literal["pass", "fail", "exit5"], typer.Option("--on-inconclusive", help="What an open verdict means.")
]

Budget = Annotated[
    str, typer.Option("--budget", metavar="TIME", help="Sampling time per case; workers start on top.")
]
Precision = Annotated[
    str, typer.Option("--precision", metavar="SHARE", help="Go on until intervals are this narrow, as 1%.")
]
Replicates = Annotated[int | None, typer.Option("--replicates", min=2, help="Exactly so many.")]
Confidence = Annotated[str, typer.Option("--confidence", metavar="SHARE", help="Of all intervals.")]
NoConfirm = Annotated[bool, typer.Option("--no-confirm", help="Report a failure without a second run.")]
Allocator = Annotated[
    Literal["fixed", "default"],
    typer.Option("--allocator", help="default: what an untuned deployment sees."),
]
Timeout = Annotated[str, typer.Option("--timeout", metavar="TIME", help="Longest wait for one answer.")]
Seed = Annotated[int, typer.Option("--seed", help="Of weights, inputs and the order of samples.")]

Against = Annotated[
    str, typer.Option("--against", metavar="git:REV", help="Each model against itself at that revision.")
]
Python = Annotated[
    list[str] | None,
    typer.Option("--python", metavar="PATH", help="Interpreter of the baseline's side; again: the other's."),
]
Baseline = Annotated[Path | None, typer.Option("--baseline", metavar="FILE", help="Judge by stored ratios.")]
SaveBaseline = Annotated[
    Path | None, typer.Option("--save-baseline", metavar="FILE", help="Store ratios to a reference workload.")
]
SelfTest = Annotated[
    bool, typer.Option("--self-test", help="Time the baseline against itself: what can be detected here?")
]

_FILE = "Also write the report as "
Csv = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help=_FILE + "CSV.")]
Markdown = Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help=_FILE + "Markdown.")]
Junit = Annotated[Path | None, typer.Option("--junit", metavar="FILE", help=_FILE + "JUnit XML.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help=_FILE + "one offline HTML page.")]
History = Annotated[
    Path | None, typer.Option("--history", metavar="FILE", help="Append this run; --html plots it.")
]
