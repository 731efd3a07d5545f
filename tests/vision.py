"""torchvision's and timm's networks, also where torchvision's compiled operators do not fit torch."""

from __future__ import annotations

import torch

from bntool.sources import torchvision_ops

torchvision_ops.declare()


def network(source: str, name: str) -> torch.nn.Module:
    """A torchvision or timm network with random weights, in eval mode."""
    if source == "timm":
        import timm

        return timm.create_model(name, pretrained=False).eval()
    from torchvision.models import get_model

    # inception networks would otherwise spend minutes on drawing their weights from a truncated normal
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return get_model(name, weights=None, **options).eval()
