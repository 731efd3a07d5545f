"""The commands on the sample models: what they say, write and refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import torch

import bntool
from bntool.errors import BntoolError, UsageError
from tests.cli.conftest import ROOT, Run

NAMES = sorted(path.stem for path in (ROOT / "sample_models").glob("*.py"))
NORMED = ["audio1d", "branchy", "densenet", "levit", "mobilenet", "preact_resnet", "repvgg", "resnet"]
NORMED += ["siamese", "unet", "video3d"]


def ref(name: str) -> str:
    return f"models/{name}.py:{name}"


@pytest.mark.parametrize("name", NAMES)
def test_insert_writes_a_model_that_computes_the_same(run: Run, name: str) -> None:
    report = run("insert", ref(name), "-o", "normed", "--json").json
    assert report["schema_version"] == 1
    assert report["output"] == "normed"
    assert report["data"].startswith("the example inputs and")
    assert run("verify", ref(name), "normed", "--json").json["ok"]


def test_a_folded_onnx_file_gets_its_norms_back(run: Run) -> None:
    found = run("fold", ref("resnet"), "-o", "folded.onnx", "--json").json
    report = run("insert", "folded.onnx", "--unfold", "-o", "normed.onnx", "--json").json
    assert len(report["inserted"]) == len(found["folded"]) == found["found"]
    assert run("verify", ref("resnet"), "normed.onnx", "--json").json["ok"]
    assert "and nothing else" in run("insert", "folded.onnx", "--norm", "group", "-o", "no.onnx", code=2).err
    assert "Change the suffix" in run("insert", "folded.onnx", "-o", "no.pt2", code=2).err


def test_graph_form_is_saved_as_a_bundle_and_with_its_weights(run: Run) -> None:
    for output in ("normed", "normed.safetensors"):
        run("insert", ref("lenet"), "--form", "graph", "-o", output)
    assert run("verify", ref("lenet"), "normed", "--json").json["ok"]
    loaded = bntool.load(ref("lenet"), weights="normed.safetensors")
    assert isinstance(loaded, torch.fx.GraphModule)
    run("fold", "normed", "-o", "folded")
    assert run("verify", ref("lenet"), "folded", "--json").json["ok"]
    run("export", "normed", "--no-fold", "-o", "normed.onnx")
    assert run("verify", ref("lenet"), "normed.onnx", "--json").json["ok"]


@pytest.mark.parametrize("name", NAMES)
def test_fold_writes_a_model_that_computes_the_same(run: Run, name: str) -> None:
    report = run("fold", ref(name), "-o", "folded", "--json").json
    assert report["found"] == len(report["folded"]) + len(report["kept"])
    assert all(entry["reason"] for entry in report["kept"])
    assert report["verification"] is None or report["verification"]["ok"]
    assert run("verify", ref(name), "folded", "--json").json["ok"]


@pytest.mark.parametrize("name", NORMED)
def test_calibrate_and_replace_on_models_with_norms(run: Run, name: str) -> None:
    code = f"import sys; sys.path.insert(0, 'models')\nfrom {name} import example_inputs\n"
    Path("mydata.py").write_text(code + "def batches():\n    return [example_inputs() for _ in range(4)]\n")
    report = run("calibrate", ref(name), "--data", "mydata.py:batches", "-o", "out", "--json").json
    assert len(report["calibrated"]) > 0
    report = run("replace", ref(name), "--to", "frozen", "-o", "frozen", "--json").json
    assert run("verify", ref(name), "frozen", "--json").json["ok"]


@pytest.mark.parametrize("name", ["lenet", "mlp", "vgg"])
def test_models_without_norms_have_nothing_to_calibrate_or_fold(run: Run, name: str) -> None:
    np.save("x.npy", np.zeros((4, 1, 8, 8), "float32"))
    assert "no norm to calibrate" in run("calibrate", ref(name), "--data", "x.npy", code=2).err
    assert run("fold", ref(name), "--json").json["found"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_inspect_says_something_of_every_model(run: Run, name: str) -> None:
    report = run("inspect", ref(name), "--json").json
    assert report["schema_version"] == 1
    assert run("inspect", ref(name)).out


@pytest.mark.parametrize("name", ["resnet", "unet", "siamese"])
def test_export_writes_onnx_that_computes_the_same(run: Run, name: str) -> None:
    report = run("export", ref(name), "-o", "m.onnx", "--dynamic-batch", "--json").json
    assert report["verified"]
    assert {check["batch"] for check in report["checks"]} >= {2}
    assert "BatchNormalization" not in {node.op_type for node in onnx_ir.load("m.onnx").graph}
    assert run("verify", ref(name), "m.onnx", "--json").json["ok"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_bench_times_every_model(run: Run, name: str) -> None:
    run("fold", ref(name), "-o", "folded")
    options = ["--budget", "0.2s", "--replicates", "2", "--tolerance", "900%", "--json"]
    (found,) = run("bench", ref(name), "folded", *options).json["comparisons"]
    assert found["verdict"] in ("faster", "same", "slower", "inconclusive")
    assert not found["warning"], "the outputs agree"


@pytest.mark.parametrize("name", NAMES)
def test_study_plans_for_every_model(run: Run, name: str) -> None:
    """Digits are shaped as the model takes them."""
    assert run("study", ref(name), "--data", "digits", "--dry-run", "--json").json["schema_version"] == 1


def test_control_flow_cannot_be_exported_and_nothing_is_written(run: Run) -> None:
    assert run("export", ref("branchy"), "-o", "m.onnx", code=4).err.count("\n") == 1
    assert not Path("m.onnx").exists()


def test_a_damaged_model_fails_verification_with_exit_code_6(run: Run) -> None:
    model = bntool.load(ref("resnet"))
    bntool.save(model, "good.safetensors")
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    bntool.save(model, "bad.safetensors")
    good = [ref("resnet"), "--weights", "good.safetensors"]
    bntool.save(bntool.load(good[0], weights="bad.safetensors"), "bad")
    done = run("verify", good[0], "bad", *good[1:], code=6)
    assert "different: " in done.out
    assert "smallest tolerance that would pass" in done.out


def test_options_for_modules_alone_are_refused_by_name(run: Run) -> None:
    run("export", ref("resnet"), "--no-fold", "-o", "m.onnx")
    for option in ("--split", "--pad-values"):
        assert run("fold", "m.onnx", option, code=2).err.startswith(f"error: {option}: ")
        with pytest.raises(UsageError, match=option[2:].replace("-", "_")):
            bntool.fold("m.onnx", form="graph", **{option[2:].replace("-", "_"): True})


def test_the_same_random_weights_in_every_command(run: Run) -> None:
    assert run("verify", ref("resnet"), ref("resnet"), "--json").json["smallest_tolerance"] == 0


@pytest.mark.parametrize("command", ["insert", "fold", "export"])
def test_a_dry_run_writes_nothing_and_force_is_needed_to_replace(run: Run, command: str) -> None:
    before = sorted(Path().iterdir())
    done = run(command, ref("resnet"), "-o", "m.onnx", "--dry-run")
    assert "nothing written" in done.out
    assert run(command, ref("resnet"), "-o", "m.onnx", "--dry-run", "--json").json["output"] is None
    assert sorted(Path().iterdir()) == before
    Path("m.onnx").write_text("mine")
    assert "--force" in run(command, ref("resnet"), "-o", "m.onnx", code=2).err
    assert Path("m.onnx").read_text() == "mine"
    run(command, ref("resnet"), "-o", "m.onnx", "--force")
    assert Path("m.onnx").stat().st_size > 1000


@pytest.mark.parametrize("suffix", ["", ".safetensors", ".pt2", ".pt", ".onnx"])
def test_a_folded_model_in_every_format(run: Run, suffix: str) -> None:
    target = f"folded{suffix}"
    run("fold", ref("resnet"), "-o", target)
    if suffix == ".safetensors":
        run("verify", ref("resnet"), ref("resnet"), "--weights", target)
    else:
        trust = ["--trust"] if suffix == ".pt" else []
        run("verify", ref("resnet"), target, *trust)


def test_onnx_in_onnx_out(run: Run) -> None:
    """Norms that torch's exporter does not fold by itself: after a linear, before a convolution."""
    run("export", ref("levit"), "-o", "m.onnx", "--no-fold")
    report = run("fold", "m.onnx", "-o", "folded.onnx", "--json").json
    assert report["found"] == len(report["folded"]) > 0
    run("verify", "m.onnx", "folded.onnx")


def test_keep_leaves_norms_alone(run: Run) -> None:
    report = run("fold", ref("resnet"), "--keep", "*", "--json").json
    assert report["folded"] == []
    assert report["found"] == len(report["kept"]) > 0


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (["fold", "models/resnet.py:resnt"], 3, "has no 'resnt'"),
        (["fold", "models/resnet.py"], 2, "does not say which function"),
        (["fold", "models/none.py:net"], 3, "no such file"),
        (["fold", "models/resnet.py:resnet", "-o", "out.txt"], 2, "Use .onnx, .pt2"),
        (["fold", "models/resnet.py:resnet", "-o", "none/out"], 2, "no such folder"),
        (["fold", "models/resnet.py:resnet", "--input", "1x3"], 4, "raised"),
        (["insert", "m.onnx"], 3, "no such file"),
        (["insert", "torch.nn:ReLU"], 2, "--input"),
        (["export", "models/resnet.py:resnet"], 2, "-o"),
        (["export", "models/resnet.py:resnet", "-o", "m.pt2"], 2, ".onnx"),
        (["export", "models/resnet.py:resnet", "-o", "m.onnx", "--tolerance", "-1"], 2, "from 0 on"),
        (["calibrate", "models/resnet.py:resnet", "--data", "none.npy"], 3, "no such data"),
        (["verify", "models/resnet.py:resnet", "models/vgg.py:vgg"], 4, "raised"),
    ],
)
def test_mistakes_end_in_one_message(run: Run, line: list[str], code: int, words: str) -> None:
    done = run(*line, code=code)
    assert words in done.err
    assert done.out == ""
    assert len(done.err.strip().splitlines()) == 1


TALKATIVE = """
import torch
from torch import nn


class Talkative(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        for norm in (self.norm, self.last):
            nn.init.ones_(norm.bias)

    def forward(self, x):
        print("in the forward")
        return self.last(self.norm(self.conv(x)).relu())


def net():
    print("in the factory")
    return Talkative()


def broken():
    model = Talkative()
    model.last.running_var[0] = float("nan")
    return model
"""
SHAPE = ("--input", "2x3x5x5")


def test_what_a_model_prints_is_no_part_of_the_result(run: Run) -> None:
    Path("talkative.py").write_text(TALKATIVE)
    for line in (["fold"], ["verify", "talkative.py:net"], ["inspect"]):
        line = [*line, "talkative.py:net"]
        done = run(*line, *SHAPE, "--json")
        assert done.json["schema_version"] == 1
        assert "in the factory" in done.err
        assert "in the forward" in done.err
        assert "in the f" not in run(*line, *SHAPE).out


def test_the_tables_say_what_the_json_says(run: Run) -> None:
    Path("talkative.py").write_text(TALKATIVE)
    report = run("fold", "talkative.py:net", *SHAPE, "--json").json
    lines = [line.split() for line in run("fold", "talkative.py:net", *SHAPE).out.splitlines()]
    (entry,) = report["folded"]
    figures = [entry[f"{what}_saved"] for what in ("parameters", "macs", "bytes")]
    assert figures == [2 * 4 - 4, 2 * 4 * 5 * 5, 4 * (4 * 4 - 4) + 8]
    assert ["norm", "1", "to", "1", "after", "conv", *map(str, figures)] in lines
    for one in report["verification"]["runs"]:
        (output,) = one["outputs"]
        errors = [f"{output['max_abs']:.2e}", f"{output['max_rel']:.2e}"]
        assert ["output", str(one["batch"]), *errors, "0", "100.00%"] in lines


def test_fold_says_what_its_verification_is_worth(run: Run) -> None:
    Path("talkative.py").write_text(TALKATIVE)
    done = run("fold", "talkative.py:broken", *SHAPE)
    assert "the reference itself gives values that are not finite" in done.err


def test_a_glob_that_keeps_nothing_is_noted(run: Run) -> None:
    Path("talkative.py").write_text(TALKATIVE)
    run("fold", "talkative.py:net", *SHAPE, "--keep", "*", "-o", "normed.onnx")
    run("fold", "talkative.py:net", *SHAPE, "--keep", "*", "-o", "normed.pt2")
    module = ["talkative.py:net", *SHAPE]
    for line in (module, [*module, "--merge"], ["normed.onnx"], ["normed.pt2"]):
        report = run("fold", *line, "--keep", "nrom", "--keep", "las*", "--json").json
        assert report["notes"] == ["no norm is named 'nrom', which was to be kept"]


def test_inputs_that_do_not_fit_are_said_to_be_so_also_where_nothing_folds(run: Run) -> None:
    Path("talkative.py").write_text(TALKATIVE)
    line = ("fold", "talkative.py:net", "--keep", "*", "--input", "2x4x5x5")
    assert "the model raised" in run(*line, code=4).err
    assert len(run(*line, "--no-verify", "--json").json["kept"]) == 2


def test_models_that_cannot_be_paired_have_no_empty_table(run: Run) -> None:
    Path("talkative.py").write_text("from torch import nn\n\ndef net(to=4):\n    return nn.Linear(3, to)\n")
    done = run("verify", "talkative.py:net", "talkative.py:net(to=5)", "--input", "2x3", code=6)
    assert done.out.startswith("different: shapes differ")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["fold", "empty"], "missing or damaged. Name a folder that -o wrote."),
        (["fold", "no.such:net"], "there is no module 'no'. Check the name"),
        (["fold", "lone.onnx"], "is missing. Put it beside the model."),
    ],
)
def test_messages_end_in_what_to_do(run: Run, line: list[str], words: str) -> None:
    Path("empty").mkdir()
    tensor = onnx_ir.tensor(np.ones((4, 4, 1, 1), "float32"), name="w")
    run("export", ref("resnet"), "-o", "lone.onnx")
    model = onnx_ir.load("lone.onnx")
    model.graph.initializers["w"] = onnx_ir.Value(name="w", const_value=tensor)
    onnx_ir.save(model, "lone.onnx", external_data="lone.data")
    Path("lone.data").unlink()
    assert words in run(*line, code=3).err


def test_a_question_ends_in_its_own_mark() -> None:
    assert str(BntoolError("is it?", next="Look.")) == "is it? Look."
    assert str(BntoolError("it is", next="Look.")) == "it is. Look."


def test_quiet_and_json_leave_stderr_and_stdout_clean(run: Run) -> None:
    done = run("fold", ref("branchy"), "-q", "--json")
    assert done.err == ""
    assert done.json["schema_version"] == 1
