"""Subgraphs and functions: folds stay inside a scope, constants may be from outside, nodes may not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bntool.fold_onnx import fold_model
from tests.graphs.onnx_models import NEWEST, by_runtime, count, model, norm, norm_weights, weight
from tests.graphs.test_onnx_fold import node, reasons


def branch(name: str, nodes: list[Any], output: str) -> Any:
    out = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", 4, 4, 4])
    return helper.make_graph(nodes, name, [], [out])


def with_if(then: list[Any], otherwise: list[Any], before: list[Any], weights: dict[str, Any]) -> ModelProto:
    """An If on the sign of the input's mean; both branches give `out`."""
    choice = [
        node("ReduceMean", "x", "mean", keepdims=0),
        node("Greater", "mean zero", "positive"),
        helper.make_node(
            "If",
            ["positive"],
            ["z"],
            name="choice",
            then_branch=branch("then", then, "then_out"),
            else_branch=branch("else", otherwise, "else_out"),
        ),
    ]
    stored = {**weights, "zero": np.zeros(())}
    return model([*before, *choice], {"x": ["batch", 3, 4, 4]}, ["z"], stored, dtype="float32", opset=20)


def both_ways(proto: ModelProto, folded: ModelProto) -> None:
    """ONNX Runtime on inputs that take either branch."""
    from bntool.sources import onnx_run

    sessions = [onnx_run.session(m.SerializeToString()) for m in (proto, folded)]
    for sign in (1, -1):
        x = sign * np.abs(np.random.default_rng(0).standard_normal((2, 3, 4, 4))).astype(np.float32)
        a, b = (onnx_run.run(session, {"x": x})[0] for session in sessions)
        assert np.abs(a - b).max() / np.abs(a).max() < 1e-5


def test_each_branch_folds_by_itself_with_constants_from_outside() -> None:
    then = [node("Conv", "x w", "a"), norm("a", "then_out")]
    otherwise = [node("Conv", "x w", "b"), norm("b", "else_out", "other")]
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4), **norm_weights(4, "other", seed=7)}
    proto = with_if(then, otherwise, [], weights)
    result = fold_model(proto, verify=False)
    assert len(result.report.folded) == 2
    assert {e.name for e in result.report.folded} == {"choice/then_branch/bn", "choice/else_branch/other"}
    both_ways(proto, result.model)
    chosen = next(n for n in result.model.graph.node if n.op_type == "If")
    assert [[n.op_type for n in a.g.node] for a in chosen.attribute] == [["Conv"], ["Conv"]]
    assert "w" not in {t.name for t in result.model.graph.initializer}


def test_a_node_outside_is_never_touched_from_inside() -> None:
    then = [norm("y", "then_out")]
    otherwise = [node("Relu", "y", "else_out")]
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4)}
    proto = with_if(then, otherwise, [node("Conv", "x w", "y")], weights)
    result = fold_model(proto, verify=False)
    assert "then_branch" in result.report.kept[0].name
    both_ways(proto, result.model)


def test_a_capture_counts_as_a_reader() -> None:
    """The value between convolution and norm is read inside a branch."""
    then = [node("Neg", "y", "then_out")]
    otherwise = [node("Identity", "zz", "else_out")]
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4)}
    proto = with_if(then, otherwise, [node("Conv", "x w", "y"), norm("y", "zz")], weights)
    result = fold_model(proto, verify=False)
    assert "feeds 2 places" in reasons(result.report)[0]
    both_ways(proto, result.model)


def test_a_branch_that_hands_out_the_value_itself_follows_the_rename() -> None:
    """Both branches read the norm's output; one is nothing but its name."""
    then = [node("Neg", "zz", "then_out")]
    otherwise = [node("Identity", "zz", "else_out")]
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4)}
    proto = with_if(then, otherwise, [node("Conv", "x w", "y"), norm("y", "zz")], weights)
    result = fold_model(proto, verify=False)
    assert len(result.report.folded) == 1
    both_ways(proto, result.model)


def test_a_loop_body_folds_by_itself() -> None:
    nodes = [node("Conv", "state w", "a"), norm("a", "new"), node("Identity", "keep", "on")]
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        nodes,
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("keep", TensorProto.BOOL, []),
            value("state", TensorProto.FLOAT, ["batch", 3, 4, 4]),
        ],
        [value("on", TensorProto.BOOL, []), value("new", TensorProto.FLOAT, ["batch", 3, 4, 4])],
    )
    loop = helper.make_node("Loop", ["times", "yes", "x"], ["z"], name="loop", body=body)
    weights = {"w": weight(3, 3, 1, 1), **norm_weights(3), "times": np.array(3), "yes": np.array(True)}
    proto = model([loop], {"x": ["batch", 3, 4, 4]}, ["z"], weights, dtype="float32", opset=20)
    folded, report = by_runtime(proto)
    assert len(report.folded) == 1
    assert report.folded[0].name == "loop/body/bn"
    assert count(folded) == 0


def test_what_a_loop_calls_as_a_constant_is_called_outside_is_no_constant() -> None:
    """The body's state has the name of a tensor that the graph outside stores."""
    value = helper.make_tensor_value_info
    nodes = [node("Neg", "kept", "a"), norm("a", "new"), node("Identity", "keep", "on")]
    state = value("kept", TensorProto.FLOAT, ["batch", 3, 4, 4])
    given = [value("i", TensorProto.INT64, []), value("keep", TensorProto.BOOL, []), state]
    made = [value("on", TensorProto.BOOL, []), value("new", TensorProto.FLOAT, ["batch", 3, 4, 4])]
    body = helper.make_graph(nodes, "body", given, made)
    before = node("Add", "x kept", "start")
    loop = helper.make_node("Loop", ["times", "yes", "start"], ["z"], name="loop", body=body)
    weights = {"kept": weight(3, 4, 4), **norm_weights(3), "times": np.array(2), "yes": np.array(True)}
    proto = model([before, loop], {"x": ["batch", 3, 4, 4]}, ["z"], weights, dtype="float32", opset=20)
    assert "takes no map" in reasons(by_runtime(proto)[1])[0]


def test_a_name_that_a_branch_uses_before_the_graph_around_it_does_stays_its_own() -> None:
    """The norm's output, and the value in front of it, are also what values of the branches are called."""
    then = [node("Conv", "x w", "zz"), node("Neg", "zz", "then_out")]
    otherwise = [node("Conv", "x w", "y"), node("Abs", "y", "else_out")]
    weights = {"w": weight(4, 3, 1, 1), "v": weight(4, 4, 1, 1), **norm_weights(4)}
    proto = with_if(then, otherwise, [], weights)
    proto.graph.node[-1].output[0] = "chosen"
    proto.graph.node.extend([node("Conv", "chosen v", "y"), norm("y", "zz"), node("Relu", "zz", "z")])
    result = fold_model(proto, verify=False)
    assert len(result.report.folded) == 1
    both_ways(proto, result.model)


def with_function(opset: int) -> ModelProto:
    block = helper.make_function(
        "local",
        "Block",
        ["x", "w", "g", "b", "m", "v"],
        ["z"],
        [node("Conv", "x w", "y"), helper.make_node("BatchNormalization", list("ygbmv"), ["z"])],
        [helper.make_opsetid("", opset)],
    )
    bn = norm_weights(4)
    call = helper.make_node("Block", ["x", "w", *bn], ["z"], domain="local", name="call")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [call],
        "g",
        [value("x", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [value("z", TensorProto.FLOAT, ["batch", 4, 4, 4])],
        [
            numpy_helper.from_array(w.astype(np.float32), n)
            for n, w in {"w": weight(4, 3, 1, 1), **bn}.items()
        ],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    proto = helper.make_model(graph, functions=[block], opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(proto)
    return proto


def test_functions_are_written_out_and_folded() -> None:
    folded, report = by_runtime(with_function(opset=20))
    assert len(report.folded) == 1
    assert "functions were written out" in report.notes[0]
    assert count(folded) == 0


def test_functions_of_another_opset_are_said_to_stay() -> None:
    _, report = by_runtime(with_function(opset=18))
    assert report.found == 0
    assert report.notes == ["functions that were not looked into, as their opset is not the model's: Block"]


def test_foreign_operators_are_opaque_and_named() -> None:
    nodes = [
        node("Conv", "x w", "y"),
        helper.make_node("Strange", ["y"], ["s"], domain="com.example", name="strange"),
        norm("s", "z"),
    ]
    proto = model(nodes[:1], {"x": ["batch", 3, 4, 4]}, ["y"], {"w": weight(4, 3, 1, 1), **norm_weights(4)})
    proto.graph.node.extend(nodes[1:])
    proto.graph.output[0].name = "z"
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    report = fold_model(proto, verify=False).report
    assert "com.example.Strange" in reasons(report)[0] or "not known" in reasons(report)[0]
    assert NEWEST >= 20


def test_a_value_may_be_called_like_the_way_into_a_branch() -> None:
    """The format takes any text for a name: `z/then_branch/m` is not the `m` of that branch."""
    path = "z/then_branch/"
    before = [node("Conv", f"x {path}w", "q"), norm("q", f"{path}m", "other")]
    stored = numpy_helper.from_array(weight(4, 3, 1, 1, seed=2).astype("float32"))
    then = [node("Constant", "", "w", value=stored), node("Conv", "x w", "a"), norm("a", "m")]
    then.append(node("Add", f"m {path}m", "then_out"))
    otherwise = [node("Conv", "x v", "else_out")]
    weights = {f"{path}w": weight(4, 3, 1, 1), "v": weight(4, 3, 1, 1, seed=3), **norm_weights(4)}
    for statistics in (
        norm_weights(4, "other", seed=5),
        norm_weights(4, "other"),
    ):  # other ones, and the same
        proto = with_if(then, otherwise, before, {**weights, **statistics})
        result = fold_model(proto, verify=False)
        assert len(result.report.folded) == 2
        both_ways(proto, result.model)
