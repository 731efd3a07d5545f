"""float32 as float32: torch lets convolutions on a GPU round to TF32, which hides what is looked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def full_precision() -> Iterator[None]:
    """While this lasts neither TF32 nor bfloat16 stands in for float32; then it is as it was.

    TF32 keeps 10 bits of the mantissa: two right results are a thousandth apart. Torch has two interfaces
    for this and refuses to read one after the other was used: whichever the program uses is used here.
    Source: PyTorch notes, CUDA semantics, "TensorFloat-32 (TF32) on Ampere (and later) devices".
    """
    import torch

    cudnn = torch.backends.cudnn
    try:
        before = cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:
        with _newer_interface(torch.backends):
            yield
        return
    try:
        _set(False, "highest")
        yield
    finally:
        _set(*before)


def _set(convolutions: bool, products: str) -> None:
    """(What is so already is not touched: setting it again would count as a wish of the program's.)"""
    import torch

    if torch.backends.cudnn.allow_tf32 != convolutions:
        torch.backends.cudnn.allow_tf32 = convolutions
    if torch.get_float32_matmul_precision() != products:
        torch.set_float32_matmul_precision(products)


@contextmanager
def _newer_interface(backends: Any) -> Iterator[None]:
    places = [
        *(getattr(backends.cudnn, name) for name in ("conv", "rnn")),
        backends.cuda.matmul,
        *(getattr(backends.mkldnn, name) for name in ("conv", "rnn", "matmul")),
    ]
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
