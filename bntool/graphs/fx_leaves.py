"""Modules that matter as such, not for the function they call: with them as leaves a graph trains."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import activation, dropout

GATED = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax)
ACTIVATIONS = tuple(
    kind
    for name in activation.__all__
    if isinstance(kind := getattr(activation, name), type) and kind not in GATED
)
LEAVES = (nn.Identity, dropout._DropoutNd, *ACTIVATIONS)
