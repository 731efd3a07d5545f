"""Lets torchvision and timm be imported where torchvision's compiled operators do not fit torch.

Wheels on PyPI are built for CUDA; beside a CPU-only torch their library does not load, and the import fails
because shape functions are registered for operators that nobody declared. Declaring them is enough for every
network that does not run one of them (detection models do).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

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


_DECLARED: list[Any] = []


def declare() -> bool:
    """Declare the operators unless torchvision's own are there. Returns: whether that was needed, and new."""
    if _DECLARED or compiled_operators_load():
        return False
    library: Any = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    _DECLARED.append(library)
    return True
