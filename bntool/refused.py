"""Options of a fold that only modules can take: for what was exported they are refused, by name."""

from __future__ import annotations

from collections.abc import Mapping

from bntool.errors import UsageError

PADDING = (
    "exported files keep their padding",
    "Fold the module it was exported from with form='graph', then export that.",
)
#: kind of model -> option -> what speaks against it, and what to do
REFUSED = {
    "onnx": {
        "split": ("in an ONNX model each call of a layer takes its own norm as it is", "Leave it out."),
        "pad_values": PADDING,
    },
    "program": {
        "split": (
            "a torch.export program folds without splitting shared layers",
            "Split the module it was exported from with form='graph', then export that.",
        ),
        "pad_values": PADDING,
    },
}


def refuse_others(kind: str, given: Mapping[str, bool]) -> None:
    """Options by name, as the caller writes them. Raises: UsageError for one that this kind does not take."""
    for option, value in given.items():
        refusal = REFUSED.get(kind, {}).get(option.removeprefix("--").replace("-", "_"))
        if value and refusal is not None:
            what, advice = refusal
            raise UsageError(what, where=option, next=advice)
