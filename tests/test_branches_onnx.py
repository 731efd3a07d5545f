"""Branches of an ONNX file merge as those of a module do, without torch in the tool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bntool import fold
from bntool.fold_onnx import fold_file

RNG = np.random.default_rng(0)


class Writer:
    """Writes an ONNX graph value by value."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def tensor(self, *shape: int, low: float = -1.0) -> str:
        name = f"t{len(self.tensors)}"
        values = RNG.uniform(low, 1.5, shape).astype(np.float32)
        self.tensors.append(numpy_helper.from_array(values, name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        out = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out], name=out, **attributes))  # type: ignore[arg-type]
        return out

    def conv(self, x: str, taps: int, stride: int = 1, group: int = 1) -> str:
        weight = self.tensor(4, 4 // group, taps, taps)
        return self.op(
            "Conv",
            x,
            weight,
            pads=[taps // 2] * 4,
            strides=[stride] * 2,
            group=group,
            kernel_shape=[taps] * 2,
        )

    def norm(self, x: str) -> str:
        statistics = [self.tensor(4), self.tensor(4), self.tensor(4), self.tensor(4, low=0.5)]
        return self.op("BatchNormalization", x, *statistics)

    def model(self, output: str, batch: int | str = 2) -> onnx.ModelProto:
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 4, None, None])
            for name in ("x", output)
        ]
        ends[0] = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4, 8, 8])
        graph = helper.make_graph(self.nodes, "branches", ends[:1], ends[1:], self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def block(w: Writer, x: str) -> str:
    """relu(norm(conv3(x)) + norm(conv1(x)) + norm(x))"""
    left = w.op("Add", w.norm(w.conv(x, 3)), w.norm(w.conv(x, 1)))
    return w.op("Relu", w.op("Add", left, w.norm(x)))


@pytest.mark.parametrize("batch", [2, "batch"])
def test_a_repvgg_block_becomes_one_convolution(batch: int | str) -> None:
    w = Writer()
    model = w.model(block(w, block(w, "x")), batch)
    result = fold(model, merge=True)
    assert [node.op_type for node in result.model.graph.node] == ["Conv", "Relu", "Conv", "Relu"]
    assert result.report.verification.ok
    assert (result.report.found, len(result.report.folded)) == (6, 6)
    onnx.checker.check_model(result.model)


@pytest.mark.parametrize(("stride", "left"), [(1, 1), (2, 3)])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
def test_branches_that_pad_by_themselves_merge_where_no_size_says_how_wide(
    auto_pad: str, stride: int, left: int
) -> None:
    w = Writer()
    a, b = (w.op("Conv", "x", w.tensor(4, 4, n, n), auto_pad=auto_pad, strides=[stride] * 2) for n in (3, 1))
    result = fold(w.model(w.op("Add", w.norm(a), w.norm(b))), merge=True)
    assert len(result.model.graph.node) == left
    assert result.report.verification.ok


def test_a_pooled_branch_and_a_stride_merge() -> None:
    w = Writer()
    pooled = w.op("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, count_include_pad=1)
    model = w.model(w.op("Add", w.conv("x", 3, stride=2), w.norm(pooled)))
    result = fold(model, merge=True)
    assert [node.op_type for node in result.model.graph.node] == ["Conv"]
    assert result.report.verification.ok


@pytest.mark.parametrize(("taps", "stride", "convs"), [(3, 1, 1), (2, 1, 2), (3, 2, 2)])
def test_padding_chosen_by_the_runtime_is_known_where_it_is_the_same_on_both_sides(
    taps: int, stride: int, convs: int
) -> None:
    w = Writer()
    same = {"auto_pad": "SAME_UPPER", "strides": [stride] * 2, "kernel_shape": [taps] * 2}
    chosen = w.op("Conv", "x", w.tensor(4, 4, taps, taps), **same)
    result = fold(w.model(w.op("Add", chosen, w.conv("x", 1, stride))), merge=True)
    assert sum(node.op_type == "Conv" for node in result.model.graph.node) == convs
    assert result.report.verification.ok


@pytest.mark.parametrize("opset", [10, 18])
def test_branches_that_pad_with_more_of_the_image_merge(opset: int) -> None:
    w = Writer()
    widths = [0, 0, 1, 1, 0, 0, 1, 1]
    if opset < 11:
        padded = w.op("Pad", "x", pads=widths, mode="reflect")
    else:
        w.tensors.append(numpy_helper.from_array(np.array(widths), "widths"))
        padded = w.op("Pad", "x", "widths", mode="reflect")
    convs = w.op("Conv", padded, w.tensor(4, 4, 3, 3)), w.conv("x", 1)
    model = w.model(w.op("Add", *convs))
    model.opset_import[0].version = opset
    result = fold(model, merge=True)
    assert [node.op_type for node in result.model.graph.node] == ["Pad", "Conv"]
    assert result.report.verification.ok
    onnx.checker.check_model(result.model)


@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize(("dims", "op"), [((3, 8), "Gemm"), ((3, 8), "MatMul"), ((2, 3, 8), "MatMul")])
def test_products_merge_too(dims: tuple[int, ...], op: str, opset: int) -> None:
    """(x A + b) + x B + c, by a further product: one."""
    w = Writer()
    if op == "Gemm":
        first = w.op("Gemm", "x", w.tensor(6, 8), w.tensor(6), transB=1, alpha=0.5, beta=2.0)
        second = w.op("Gemm", "x", w.tensor(8, 6), w.tensor(1, 6), alpha=-1.5)
        last = w.op("Gemm", w.op("Add", first, second), w.tensor(6, 2), w.tensor(2))
    else:
        first = w.op("Add", w.op("MatMul", "x", w.tensor(8, 6)), w.tensor(6))
        second = w.op("Sub", w.op("MatMul", "x", w.tensor(8, 6)), w.tensor(1, 6))
        last = w.op("MatMul", w.op("Mul", w.op("Add", first, second), w.tensor(6)), w.tensor(6, 2))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", dims), (last, [*dims[:-1], 2]))
    ]
    graph = helper.make_graph(w.nodes, "products", ends[:1], ends[1:], w.tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    result = fold(model, merge=True)
    assert result.report.verification.ok
    assert [node.op_type for node in result.model.graph.node] == (
        ["Gemm"] if op == "Gemm" else ["MatMul", "Add"]
    )
    onnx.checker.check_model(result.model)


@pytest.mark.parametrize(("opset", "inputs"), [(9, 3), (13, 2)])
def test_a_product_without_a_bias_gets_one_only_where_it_must(opset: int, inputs: int) -> None:
    w = Writer()
    zero = [w.tensor(1)] * (opset < 11)
    for tensor in w.tensors:
        tensor.CopyFrom(numpy_helper.from_array(np.zeros(1, np.float32), tensor.name))
    total = w.op("Add", w.op("Gemm", "x", w.tensor(4, 4), *zero), "x")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 4]) for name in ("x", total)]
    graph = helper.make_graph(w.nodes, "product", ends[:1], ends[1:], w.tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    result = fold(made, merge=True)
    assert [len(node.input) for node in result.model.graph.node] == [inputs]
    assert result.report.verification.ok


def test_a_norm_folds_into_a_large_layer_that_was_merged_before() -> None:
    w = Writer()
    flat = w.op("Flatten", w.norm("x"))
    model = w.model(w.op("MatMul", w.op("MatMul", flat, w.tensor(256, 300)), w.tensor(300, 5)))
    del model.graph.output[0].type.tensor_type.shape.dim[2:]
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5
    result = fold(model, merge=True)
    assert [node.op_type for node in result.model.graph.node] == ["Flatten", "MatMul", "Add"]


def test_a_product_that_would_leave_half_precision_is_not_merged() -> None:
    w = Writer()
    big = [numpy_helper.from_array(np.full((8, 8), 300, np.float16), name) for name in ("a", "b")]
    w.tensors += big
    out = w.op("MatMul", w.op("MatMul", "x", "a"), "b")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [4, 8]) for name in ("x", out)]
    graph = helper.make_graph(w.nodes, "large", ends[:1], ends[1:], w.tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    assert len(fold(model, merge=True, verify=False).model.graph.node) == 2


def test_values_may_have_any_name() -> None:
    w = Writer()
    model = w.model(w.op("Add", w.conv("x", 3), w.conv("x", 1)))
    model.graph.node[-1].output[0] = model.graph.output[0].name = "sum@2"
    assert len(fold(model, merge=True).model.graph.node) == 1


def test_branches_stay_unless_asked_for() -> None:
    w = Writer()
    result = fold(w.model(block(w, "x")))
    assert sum(node.op_type == "Conv" for node in result.model.graph.node) == 2


def test_a_branch_that_others_read_stays() -> None:
    w = Writer()
    branch = w.conv("x", 3)
    total = w.op("Add", branch, w.conv("x", 1))
    result = fold(w.model(w.op("Mul", total, branch)), merge=True)
    assert sum(node.op_type == "Conv" for node in result.model.graph.node) == 2


def test_a_file_merges_and_a_dry_run_tells_the_same(tmp_path: Path) -> None:
    w, source, target = Writer(), tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(w.model(block(w, "x")), source)
    planned = fold_file(source, merge=True, verify=False)
    written = fold_file(source, target, merge=True)
    assert planned.folded == written.folded
    assert [entry.side for entry in written.folded] == ["merged"] * 3
    assert [node.op_type for node in onnx.load(target).graph.node] == ["Conv", "Relu"]
