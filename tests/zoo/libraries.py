"""`make libraries`: networks as other libraries write them, folded as modules. ARGS: names to select.

Small ones of their kinds, in float64, with random weights and statistics; the forwards are what counts:
decorators, optional arguments, outputs of many sorts, slices, state. Each must compute the same, and keep no
more norms than algebra leaves.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn

import bntool
from tests.random_norms import randomise_norms
from tests.vision import network
from tests.zoo.check import LIMIT, relative_error, run

STAGES = {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]}
SMALL = {**STAGES, "embedding_size": 8}
LEVIT = {
    "hidden_sizes": [32, 64, 96],
    "num_attention_heads": [2, 2, 2],
    "depths": [1, 1, 1],
    "key_dim": [8, 8, 8],
}
VIT = {
    "hidden_sizes": [16, 24, 32],
    "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32],
    "num_attention_heads": 2,
}
DETECTOR = {
    **{"encoder_hidden_dim": 16, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 5},
    **{
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
    },
    **{"encoder_in_channels": [16, 32, 32], "decoder_in_channels": [16, 16, 16]},
}


def transformers(name: str, **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        module = import_module("transformers")
        if "backbone" in config:
            kind, options = config.pop("backbone")
            config["backbone_config"] = getattr(module, kind)(**options)
        kind = name.removesuffix("Model").partition("For")[0].removesuffix("Backbone")
        return getattr(module, name)(getattr(module, f"{kind}Config")(**config))  # type: ignore[no-any-return]

    return build


def yolo(config: str, kind: str = "DetectionModel") -> Callable[[], nn.Module]:
    return lambda: getattr(import_module("ultralytics.nn.tasks"), kind)(config, verbose=False)  # type: ignore[no-any-return]


def segmentation(name: str, encoder: str = "resnet18", **options: Any) -> Callable[[], nn.Module]:
    module = "segmentation_models_pytorch"
    return lambda: getattr(import_module(module), name)(encoder, encoder_weights=None, **options)  # type: ignore[no-any-return]


def pytorchcv(name: str) -> Callable[[], nn.Module]:
    return lambda: import_module("pytorchcv.model_provider").get_model(name)  # type: ignore[no-any-return]


DETR_BACKBONE = ("RTDetrResNetConfig", {**SMALL, "out_features": ["stage2", "stage3", "stage4"]})
#: name -> how it is built, the size of an image, how many norm kernels may be left
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "transformers resnet": (transformers("ResNetForImageClassification", **SMALL), 64, 0),
    "transformers resnet backbone": (transformers("ResNetBackbone", out_features=["stage4"], **SMALL), 64, 0),
    "transformers regnet": (transformers("RegNetForImageClassification", groups_width=8, **SMALL), 64, 0),
    "transformers mobilenet_v1": (
        transformers("MobileNetV1ForImageClassification", depth_multiplier=0.25),
        64,
        0,
    ),
    "transformers mobilenet_v2": (
        transformers("MobileNetV2ForImageClassification", depth_multiplier=0.35),
        64,
        0,
    ),
    "transformers levit": (transformers("LevitForImageClassification", image_size=224, **LEVIT), 224, 0),
    "transformers mobilevit": (transformers("MobileViTForImageClassification", image_size=64, **VIT), 64, 0),
    "transformers hgnet_v2": (transformers("HGNetV2ForImageClassification"), 64, 0),
    "transformers textnet": (transformers("TextNetForImageClassification"), 64, 11),
    "transformers rt_detr": (
        transformers("RTDetrForObjectDetection", backbone=DETR_BACKBONE, **DETECTOR),
        64,
        0,
    ),
    "transformers segformer": (transformers("SegformerForSemanticSegmentation", depths=[1, 1, 1, 1]), 64, 0),
    "ultralytics yolov5n": (yolo("yolov5n.yaml"), 64, 0),
    "ultralytics yolov8n": (yolo("yolov8n.yaml"), 64, 0),
    "ultralytics yolov9t": (yolo("yolov9t.yaml"), 64, 0),
    "ultralytics yolov10n": (yolo("yolov10n.yaml"), 64, 0),
    "ultralytics yolo11n": (yolo("yolo11n.yaml"), 64, 0),
    "ultralytics yolo12n": (yolo("yolo12n.yaml"), 64, 0),
    "ultralytics yolo26n": (yolo("yolo26n.yaml"), 64, 0),
    "ultralytics yolov8n-seg": (yolo("yolov8n-seg.yaml", "SegmentationModel"), 64, 0),
    "ultralytics yolov8n-pose": (yolo("yolov8n-pose.yaml", "PoseModel"), 64, 0),
    "ultralytics yolov8n-cls": (yolo("yolov8n-cls.yaml", "ClassificationModel"), 64, 0),
    "ultralytics rtdetr-l": (yolo("rtdetr-l.yaml"), 64, 0),
    "smp unet": (segmentation("Unet"), 64, 0),
    "smp unet++": (segmentation("UnetPlusPlus"), 64, 0),
    "smp fpn": (segmentation("FPN"), 64, 0),
    "smp deeplabv3+": (segmentation("DeepLabV3Plus"), 64, 0),
    "smp unet dpn68": (segmentation("Unet", "dpn68"), 64, 27),
    "smp unet efficientnet": (segmentation("Unet", "efficientnet-b0"), 64, 0),
    "smp unet scse": (segmentation("Unet", decoder_attention_type="scse", aux_params={"classes": 4}), 64, 0),
    "pytorchcv dla34": (pytorchcv("dla34"), 224, 0),
    "pytorchcv hrnet": (pytorchcv("hrnet_w18_small_v1"), 224, 0),
    "pytorchcv enet": (pytorchcv("enet_cityscapes"), 224, 1),
    "pytorchcv centernet": (pytorchcv("centernet_resnet18_voc"), 224, 0),
}


def check(name: str) -> bool:
    build, size, allowed = NETWORKS[name]
    torch.manual_seed(0)
    inputs = (torch.randn(2, 3, size, size, dtype=torch.float64),)
    model = randomise_norms(build().eval().double(), inputs)
    want, before = run(model, inputs)
    start = time.perf_counter()
    result = bntool.fold(model, inputs, verify=False)
    seconds = time.perf_counter() - start
    got, after = run(result.model, inputs)
    error = relative_error(got, want)
    passed = error <= LIMIT and after <= allowed
    print(
        f"{name:32}{before:6}{after:6}{allowed:6}{error:10.1e}{seconds:8.1f}  {'ok' if passed else 'FAILED'}",
        flush=True,
    )
    return passed


def main() -> int:
    warnings.filterwarnings("ignore")
    os.environ |= {"HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false"}
    network("torchvision", "resnet18")  # whose missing ops these libraries' imports would ask for
    chosen = [name for name in NETWORKS if not sys.argv[1:] or any(a in name for a in sys.argv[1:])]
    print(f"{'':32}{'norms':>6}{'left':>6}{'may':>6}{'error':>10}{'s':>8}")
    passed = [check(name) for name in chosen]
    print(f"\n{sum(passed)} of {len(passed)} networks pass")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
