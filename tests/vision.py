"""Lets torchvision and timm be imported where torchvision's compiled operators do not fit torch.

Wheels on PyPI are built for CUDA; beside a CPU-only torch their library does not load, and the import fails
because shape functions are registered for operators that nobody declared. Declaring them is enough: no
network tested here runs one. Import this module before torchvision or timm.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

ROI = "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
GRAD = "Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
SIZES = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
STEPS = "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dil_h, SymInt dil_w"
DEFORM = "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias"
GROUPS = "SymInt groups, SymInt offset_groups, bool use_mask"

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align({ROI}, int sampling_ratio, bool aligned) -> Tensor",
    f"qroi_align({ROI}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_align_backward({GRAD}, {SIZES}, int sampling_ratio, bool aligned) -> Tensor",
    f"roi_pool({ROI}) -> (Tensor, Tensor)",
    f"_roi_pool_backward({GRAD}, Tensor argmax, {SIZES}) -> Tensor",
    f"ps_roi_align({ROI}, int sampling_ratio) -> (Tensor, Tensor)",
    f"_ps_roi_align_backward({GRAD}, Tensor mapping, int sampling_ratio, {SIZES}) -> Tensor",
    f"ps_roi_pool({ROI}) -> (Tensor, Tensor)",
    f"_ps_roi_pool_backward({GRAD}, Tensor mapping, {SIZES}) -> Tensor",
    f"deform_conv2d({DEFORM}, {STEPS}, {GROUPS}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, {DEFORM}, {STEPS}, {GROUPS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def compiled_operators_load() -> bool:
    """Whether torchvision's own library fits; loading it twice is harmless."""
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(library)
        except OSError:
            continue
        return True
    return False


LIBRARY = None if compiled_operators_load() else torch.library.Library("torchvision", "FRAGMENT")
if LIBRARY is not None:
    for schema in SCHEMAS:
        LIBRARY.define(schema)


def network(source: str, name: str) -> torch.nn.Module:
    """A torchvision or timm network with random weights, in eval mode."""
    if source == "timm":
        import timm

        return timm.create_model(name, pretrained=False).eval()
    from torchvision.models import get_model

    # inception networks would otherwise spend minutes on drawing their weights from a truncated normal
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return get_model(name, weights=None, **options).eval()
