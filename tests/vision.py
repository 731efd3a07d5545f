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

    options: dict[str, object] = {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # minutes of drawing from a truncated normal
    if name.startswith(("deeplabv3", "fcn", "lraspp")):
        options["weights_backbone"] = None  # would be downloaded otherwise
    return get_model(name, weights=None, **options).eval()
