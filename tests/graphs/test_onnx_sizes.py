"""Open dimensions: a norm folds if its map goes the same way whatever they are, or for the sizes given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from bntool.errors import VerificationError
from bntool.fold_onnx import fold_model
from bntool.onnx_folding import folding
from tests.graphs.onnx_models import EXACT, count, error, model, norm, norm_weights, weight
from tests.graphs.test_onnx_fold import N, node, reasons


def rows(dtype: str = "float32") -> ModelProto:
    """A row of 64 is 4 channels of 16, or 2 of 32."""
    nodes = [norm("x", "b"), node("Reshape", "b s", "f"), node("Gemm", "f w", "y")]
    stored = {"s": np.array([-1, 64]), "w": weight(64, 3), **norm_weights(4)}
    return model(nodes, {"x": [N, 4, "length"]}, ["y"], stored, dtype=dtype)


def images() -> ModelProto:
    """`x.view(-1, 4 * 47 * 47)` as it is found in old networks, with sizes that were left open."""
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), norm("r", "b")]
    nodes += [node("MaxPool", "b", "p", kernel_shape=[2, 2], strides=[2, 2]), node("Reshape", "p s", "f")]
    nodes.append(node("Gemm", "f v", "y"))
    bn = norm_weights(4)
    bn["bn.weight"] = np.abs(bn["bn.weight"])
    features = 4 * 47 * 47
    stored = {"w": weight(4, 3, 3, 3), "s": np.array([-1, features]), "v": weight(features, 3), **bn}
    return model(nodes, {"x": [N, 3, "height", "width"]}, ["y"], stored, dtype="float32")


def turned() -> ModelProto:
    """The batch is moved to the end, where rows of 8 are 4 channels of two items, or 2 of four."""
    nodes = [norm("x", "b"), node("Transpose", "b", "t", perm=[2, 1, 0]), node("Reshape", "t s", "f")]
    nodes.append(node("Gemm", "f w", "y"))
    stored = {"s": np.array([-1, 8]), "w": weight(8, 3), **norm_weights(4)}
    return model(nodes, {"x": [N, 4, 16]}, ["y"], stored, dtype="float32")


@pytest.mark.parametrize("make", [rows, images])
def test_a_map_that_depends_on_sizes_nobody_gave_stays(make: Any) -> None:
    report = fold_model(make()).report
    assert "other sizes" in reasons(report)[0]
    assert report.verification.ok


@pytest.mark.parametrize(("make", "shape"), [(rows, (2, 4, 16)), (images, (2, 3, 96, 96))])
def test_it_goes_for_the_sizes_that_were_given(make: Any, shape: tuple[int, ...]) -> None:
    report = fold_model(make(), shapes={"x": shape}).report
    assert len(report.folded) == 1
    assert report.verification.ok


def test_a_given_size_decides_where_the_map_goes() -> None:
    """At a length of 32 two channels make a row, and the next row has the other two: no Gemm takes that."""
    assert len(fold_model(rows(), shapes={"x": (2, 4, 32)}).report.folded) == 0


@pytest.mark.parametrize("given", [{}, {"x": (2, 4, 16)}])
def test_a_map_that_depends_on_the_batch_stays(given: dict[str, Any]) -> None:
    report = fold_model(turned(), shapes=given).report
    assert "other batches" in reasons(report)[0]
    assert report.verification.ok


def test_what_moves_the_same_way_at_every_size_goes() -> None:
    nodes = [node("Conv", "x w", "c"), node("Reshape", "c s", "r"), norm("r", "b")]
    stored = {"w": weight(4, 3, 1, 1), "s": np.array([0, 4, -1]), **norm_weights(4)}
    made = model(nodes, {"x": [N, 3, "height", "width"]}, ["b"], stored)
    result = fold_model(made, verify=False)
    assert count(result.model) == 0
    for size in (2, 3):
        assert error(made, result.model, size) < EXACT


def test_a_model_for_a_multiple_of_items_folds_for_them() -> None:
    """Frames of one clip lie side by side in the batch."""
    nodes = [
        node("Conv", "x w", "c"),
        node("Reshape", "c s", "r"),
        node("ReduceMean", "r axes", "q", keepdims=0),
    ]
    stored = {
        "w": weight(4, 3, 1, 1),
        "s": np.array([-1, 8, 4, 6, 6]),
        "axes": np.array([1]),
        **norm_weights(4),
    }
    made = model([*nodes, norm("q", "y")], {"x": [N, 3, 6, 6]}, ["y"], stored)
    result = fold_model(made, verify=False, shapes={"x": (8, 3, 6, 6)})
    assert count(result.model) == 0
    assert error(made, result.model, 16) < EXACT


def test_a_model_that_runs_at_the_sizes_assumed_alone_is_folded_for_them() -> None:
    """What is added per place has the sizes that nobody else knows of; no data movement depends on it."""
    nodes = [
        node("Conv", "x w", "c"),
        norm("c", "b"),
        node("Add", "b place", "a"),
        node("Reshape", "a s", "y"),
    ]
    stored = {"w": weight(4, 3, 1, 1), "place": weight(1, 4, 16), "s": np.array([0, -1]), **norm_weights(4)}
    stored["w"] = stored["w"][..., 0]
    report = fold_model(model(nodes, {"x": [N, 3, "length"]}, ["y"], stored, dtype="float32")).report
    assert len(report.folded) == 1
    assert len(report.verification.runs) == 2


def test_both_models_run_at_a_second_size(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node("Conv", "x w", "c"), norm("c", "b")]
    made = model(nodes, {"x": [N, 3, "l"]}, ["b"], {"w": weight(4, 3, 3), **norm_weights(4)}, dtype="float32")
    assert [run.batch for run in fold_model(made).report.verification.runs] == [1, 2, 1]
    monkeypatch.setattr(folding, "other_graphs", lambda *args: [])
    with pytest.raises(VerificationError, match=r"^bn: .* is off"):
        fold_model(rows())


def test_sizes_without_a_name_can_be_given_too() -> None:
    nodes = [node("Conv", "x w", "c"), norm("c", "b")]
    made = model(
        nodes, {"x": [None, 3, None]}, ["b"], {"w": weight(4, 3, 97), **norm_weights(4)}, dtype="float32"
    )
    report = fold_model(made, shapes={"x": (1, 3, 128)}).report
    assert [run.batch for run in report.verification.runs] == [1, 2]


POOLED = [node("GlobalAveragePool", "b", "p"), node("Reshape", "p rows", "r")]
HEADS = {
    "a norm": [norm("x", "b"), *POOLED, node("MatMul", "r v", "y")],
    "a convolution": [node("Conv", "x w", "c", group=2), norm("c", "y", "bn2")],
    "a constant": [
        node("Mul", "x s", "m"),
        node("Reshape", "m rows", "r"),
        node("Gemm", "r u", "y", transB=1),
    ],
    "a product": [node("Transpose", "x", "t", perm=[0, 2, 3, 1]), node("MatMul", "t v", "y")],
}


@pytest.mark.parametrize("names", [(N, "c", "h", "w"), (None, None, None, None)])
@pytest.mark.parametrize("head", HEADS)
def test_layers_say_how_many_channels_an_image_has(head: str, names: Any) -> None:
    """Where all of them are open the model is folded and run with as many as it takes."""
    shapes = {"v": (4, 5), "w": (6, 2, 3, 3), "s": (4, 1, 1), "u": (5, 4)}
    stored = {n: weight(*shape) for n, shape in shapes.items()} | {"rows": np.array([-1, 4])}
    stored |= norm_weights(4) | norm_weights(6, "bn2")
    made = model(HEADS[head], {"x": [N, 4, "h", "w"]}, ["y"], stored, dtype="float32")
    for dim, name in zip(made.graph.input[0].type.tensor_type.shape.dim, names, strict=True):
        dim.Clear()
        dim.dim_param = name or ""
    report = fold_model(made).report
    assert report.verification.ok
    assert len(report.folded) == count(made)


def test_constants_that_do_not_fit_the_sizes_assumed_are_no_crash() -> None:
    nodes = [node("Slice", "x zero last two", "s"), node("Mul", "s v", "m"), norm("m", "y")]
    stored = {"zero": np.array([0]), "last": np.array([99]), "two": np.array([2]), "v": weight(5)}
    made = model(nodes, {"x": [N, 3, "length"]}, ["y"], {**stored, **norm_weights(3)})
    assert "sizes that do not fit" in reasons(fold_model(made, verify=False).report)[0]
    assert "is an output" in reasons(fold_model(made, verify=False, shapes={"x": (2, 3, 5)}).report)[0]
