"""Operators that are others in disguise: a maximum over space, a mean of values, a clip from zero on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import NodeProto

from bntool.fold_onnx import fold_model
from tests.graphs.onnx_models import by_runtime, count, folded, model, norm, norm_weights, weight
from tests.graphs.test_onnx_fold import N, node, reasons


def rising(channels: int, prefix: str = "bn") -> dict[str, Any]:
    """Random statistics of a norm whose scales are positive."""
    made = norm_weights(channels, prefix)
    return made | {f"{prefix}.weight": np.abs(made[f"{prefix}.weight"])}


def left(nodes: list[NodeProto], weights: dict[str, Any], output: str = "z", **options: Any) -> int:
    """How many norms stay."""
    made = model(nodes, {"x": [N, 3, 4, 4]}, [output], {"w": weight(4, 3, 1, 1), **weights}, **options)
    return count(folded(made)[0])


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [13, 18])
def test_a_maximum_over_space_lets_a_rising_map_pass(opset: int, keepdims: int) -> None:
    axes = {"axes": [2, -1]} if opset < 18 else {}
    largest = node("ReduceMax", "y" if axes else "y axes", "a", keepdims=keepdims, **axes)
    nodes = [node("Conv", "x w", "y"), largest, norm("a", "z")]
    weights = {"axes": np.array([2, -1])} if not axes else {}
    options: dict[str, Any] = {"opset": opset, "ir_version": 8, "dtype": "float32"}
    every = {"w": weight(4, 3, 1, 1), **weights}
    made = model(nodes, {"x": [N, 3, 4, 4]}, ["z"], {**every, **rising(4)}, **options)
    assert count(by_runtime(made)[0]) == 0
    falling = rising(4)
    falling["bn.weight"] = -falling["bn.weight"]
    made = model(nodes, {"x": [N, 3, 4, 4]}, ["z"], {**every, **falling}, **options)
    assert "a negative scale turns a maximum into a minimum" in reasons(fold_model(made).report)[0]


def test_a_maximum_over_channels_does_not() -> None:
    nodes = [node("Conv", "x w", "y"), norm("y", "a"), node("ReduceMax", "a axes", "z")]
    assert left(nodes, {"axes": np.array([1]), **rising(4)}, opset=18) == 0
    nodes = [
        node("Conv", "x w", "y"),
        node("ReduceMax", "y axes", "b"),
        node("Add", "y b", "a"),
        norm("a", "z"),
    ]
    assert left(nodes, {"axes": np.array([1]), **rising(4)}, opset=18) == 1


def test_a_mean_of_values() -> None:
    nodes = [node("Conv", "x w", "p"), node("Conv", "x v", "q"), node("Mean", "p q", "m"), norm("m", "z")]
    assert left(nodes, {"v": weight(4, 3, 1, 1, seed=2), **norm_weights(4)}) == 0
    nodes = [node("Conv", "x w", "p"), node("Mean", "p", "m"), norm("m", "z")]
    assert left(nodes, norm_weights(4)) == 0


@pytest.mark.parametrize(("inputs", "stays"), [("y none", 0), ("y one", 1), ("y none six", 1)])
def test_a_clip_from_zero_on_is_a_relu(inputs: str, stays: int) -> None:
    """A norm that only scales goes through it."""
    nodes = [node("Conv", "x w", "y"), node("Clip", inputs, "a"), norm("a", "z")]
    weights = rising(4)
    weights |= {"bn.bias": np.zeros(4), "bn.running_mean": np.zeros(4)}
    weights |= {"none": np.array(0.0), "one": np.array(1.0), "six": np.array(6.0)}
    assert left(nodes, weights) == stays


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("by", ["scales", "sizes"])
def test_images_with_channels_last_are_stretched(mode: str, by: str) -> None:
    resize = node("Resize", "t none scales" if by == "scales" else "t none none sizes", "r", mode=mode)
    nodes = [
        node("Conv", "x w", "y"), node("Transpose", "y", "t", perm=[0, 2, 3, 1]), resize,
        node("Transpose", "r", "a", perm=[0, 3, 1, 2]), norm("a", "z"),
    ]  # fmt: skip
    resize.input[1] = ""
    if by == "sizes":
        resize.input[2] = ""
    weights = {"scales": np.array([1, 2, 1.5, 1], np.float32), "w": weight(4, 3, 1, 1), **norm_weights(4)}
    weights |= {"sizes": np.array([2, 8, 6, 4])}
    del weights["sizes" if by == "scales" else "scales"]
    batch = N if by == "scales" else 2
    made = model(nodes, {"x": [batch, 3, 4, 4]}, ["z"], weights, dtype="float32")
    if mode == "cubic":  # ONNX Runtime has none of it with channels last
        assert count(fold_model(made, verify=False).model) == 0
        return
    report = fold_model(made).report
    assert report.verification.ok
    assert len(report.folded) == 1


@pytest.mark.parametrize(("axis", "stays"), [(1, 1), (-1, 0), (3, 0)])
def test_a_layer_norm_takes_the_mean_of_its_axes_off_and_not_of_its_weights(axis: int, stays: int) -> None:
    """Of a shift that differs between channels only that over the last dimension alone sees nothing."""
    nodes = [norm("x", "y", epsilon=0.0), node("LayerNormalization", "y s", "z", axis=axis)]
    shift = norm_weights(3) | {"bn.weight": np.ones(3), "bn.running_var": np.ones(3)}
    assert left(nodes, {"s": weight(4), **shift}) == stays


def test_a_pad_of_no_dimension() -> None:
    nodes = [node("Conv", "x w", "y"), node("Pad", "y none none none", "a"), norm("a", "z")]
    nodes[1].input[2] = ""
    assert left(nodes, {"none": np.array([], np.int64), **norm_weights(4)}) == 0


def test_stretched_channels_take_no_map() -> None:
    nodes = [node("Conv", "x w", "y"), node("Resize", "y none scales", "a", mode="linear"), norm("a", "z")]
    nodes[1].input[1] = ""
    weights = {"scales": np.array([1, 2, 1, 1], np.float32), "w": weight(2, 3, 1, 1), **norm_weights(4)}
    made = model(nodes, {"x": [N, 3, 4, 4]}, ["z"], weights, dtype="float32")
    assert (
        "the map differs between places it interpolates" in reasons(fold_model(made, verify=False).report)[0]
    )


@pytest.mark.parametrize("reader", ["a look-up", "a norm", "a layer norm"])
def test_what_only_gives_places_or_a_scale_is_read(reader: str) -> None:
    """The norm behind the activation has nowhere to go, and nothing else reads it."""
    per_channel = [
        node("Relu", "x", "r"),
        norm("r", "n"),
        node("ReduceMean", "n", "s", axes=[0, 2, 3], keepdims=0),
    ]
    readers = {
        "a look-up": [node("ArgMax", "s", "i", axis=0), node("Gather", "table i", "z", axis=0)],
        "a norm": [node("BatchNormalization", "x s bn.bias bn.running_mean bn.running_var", "z")],
        "a layer norm": [
            node("Transpose", "x", "t", perm=[0, 2, 3, 1]),
            node("LayerNormalization", "t s", "z"),
        ],
    }
    weights = {"table": weight(3, 5), **norm_weights(3)}
    made = model([*per_channel, *readers[reader]], {"x": [N, 3, 4, 4]}, ["z"], weights, opset=17)
    assert not fold_model(made, verify=False).report.folded
