"""Which operator names are norms, in any runtime's spelling. Knows no torch."""

from __future__ import annotations

#: a kernel is a norm if its name contains one of these
NORMS = {
    "batch_norm": "batch_norm",
    "batchnormalization": "batch_norm",
    "layer_norm": "layer_norm",
    "layernormalization": "layer_norm",
    "group_norm": "group_norm",
    "groupnormalization": "group_norm",
    "instance_norm": "instance_norm",
    "instancenormalization": "instance_norm",
    "rms_norm": "rms_norm",
    "rmsnormalization": "rms_norm",
}


def norm_of(kernel: str) -> str:
    """The kind of norm that an operator's name means, or "": `aten::native_batch_norm` is a batch_norm."""
    name = kernel.lower()
    return next((kind for part, kind in NORMS.items() if part in name), "")
