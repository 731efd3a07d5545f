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


def test_a_pooled_branch_and_a_stride_merge() -> None:
    w = Writer()
    pooled = w.op("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, count_include_pad=1)
    model = w.model(w.op("Add", w.conv("x", 3, stride=2), w.norm(pooled)))
    result = fold(model, merge=True)
    assert [node.op_type for node in result.model.graph.node] == ["Conv"]
    assert result.report.verification.ok


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
