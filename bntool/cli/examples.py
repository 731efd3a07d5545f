"""Command lines to start from, shown at the end of each command's help."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "insert": (
        "bntool insert nets.py:plain --data digits -o normed",
        "bntool insert nets.py:plain --norm group --groups 8 --dry-run",
    ),
    "calibrate": ("bntool calibrate nets.py:net --data batches.py:batches -o calibrated",),
    "replace": ("bntool replace nets.py:net --to group --groups 8 -o grouped",),
    "fold": (
        "bntool fold nets.py:net --input 1x3x224x224 -o folded",
        "bntool fold model.onnx -o folded.onnx",
        "bntool fold nets.py:net --merge -o merged.pt2",
    ),
    "inspect": ('bntool inspect "nets.py:resnet(depth=50)" --input 1x3x224x224',),
    "verify": ("bntool verify nets.py:net folded.onnx",),
    "export": ("bntool export nets.py:net --dynamic-batch -o net.onnx",),
    "bench": (
        "bntool bench nets.py:net folded --tolerance 5%",
        "bntool bench nets.py:net --against git:origin/main --junit report.xml",
        "bntool bench nets.py:net nets.py:net@onnx --batch 1,8 --budget 20s",
    ),
    "study": (
        "bntool study nets.py:plain --data digits -o report.html",
        "bntool study nets.py:plain --data data.py:loaders --claims 1,2 --budget 10m",
    ),
    "demo": ("bntool demo -o demo-out",),
}


def epilog(command: str) -> str | None:
    r"""The examples as an epilog of `--help`; \b keeps click from joining the lines."""
    lines = EXAMPLES.get(command)
    return None if lines is None else "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))
