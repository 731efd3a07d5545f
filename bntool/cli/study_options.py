"""The options of `bntool study`, as types; what each is for stands in its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DATA = "digits, file.py:factory, pkg.mod:factory, a .npz or .safetensors with x and y, a folder of images."
Data = Annotated[str, typer.Option("--data", metavar="DATA", help=DATA)]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="The report: .html, .md or .json.")
]
Claims = Annotated[
    str,
    typer.Option("--claims", metavar="LIST", help="all, or some of 1 to 7 (or their names), with commas."),
]
Norms = Annotated[
    str,
    typer.Option(
        "--norms",
        metavar="LIST",
        help="Baseline, norm in question, others: none, batch, group, layer, instance, rms, renorm, ghost.",
    ),
]
Seeds = Annotated[
    int | None, typer.Option("--seeds", min=2, help="Networks a comparison; by default as the budget allows.")
]
Budget = Annotated[str, typer.Option("--budget", metavar="TIME", help="90s, 3m, 1h: sets steps and grid.")]
Tier = Annotated[
    int | None, typer.Option("--tier", min=0, max=9, help="Set the size itself: the same on every machine.")
]
Seed = Annotated[int, typer.Option("--seed", help="The first seed; the same seed gives the same study.")]
Vary = Annotated[
    str, typer.Option("--vary", metavar="NAME=N,...", help="Depths for claim 4, as depth=5,10,20,30.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=2, help="Batch size where it is not varied.")]
Target = Annotated[
    float, typer.Option("--target", metavar="SCORE", help="The score of claim 2; 0: what the arms reach.")
]
Optimizer = Annotated[
    str, typer.Option("--optimizer", help="sgd, momentum or adam: what every network is trained with.")
]
LossFn = Annotated[
    str, typer.Option("--loss", metavar="FILE.py:FUNCTION", help="Your own loss(output, target).")
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Processes; by default one a core.")]
Ray = Annotated[
    str | None, typer.Option("--ray", metavar="ADDRESS", help="Run on this Ray cluster; local starts one.")
]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Train under bfloat16 autocast.")]
RunDir = Annotated[
    Path | None, typer.Option("--run-dir", metavar="DIR", help="Where finished trials are kept.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a study that was interrupted.")]
Tensorboard = Annotated[
    Path | None, typer.Option("--tensorboard", metavar="DIR", help="Write a TensorBoard run for each trial.")
]
