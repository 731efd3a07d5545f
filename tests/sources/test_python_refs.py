"""Models named as Python: what is understood, what is refused, and that nothing is evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bntool
from bntool.errors import BntoolError, LoadError, UsageError
from bntool.save import save
from bntool.sources import load, open_model
from bntool.sources.inputs import InputSpec, parse_input
from bntool.sources.origin import of
from bntool.sources.refs import FileRef, PythonRef, parse

NETS = """
import torch
from helper import WIDTH

class Net(torch.nn.Module):
    def __init__(self, depth=2, width=WIDTH):
        super().__init__()
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(depth)))

    def forward(self, x):
        return self.layers(x)

def net(depth=2, width=WIDTH):
    return Net(depth, width)

def broken():
    raise ValueError("on purpose\\nover two lines")

def number():
    return 3

def example_inputs(width=WIDTH):
    return torch.zeros(2, width)
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("WIDTH = 3\n")
    path = tmp_path / "nets.py"
    path.write_text(NETS)
    return path


def test_references_are_parsed_without_being_run() -> None:
    assert parse("torchvision.models:resnet18") == PythonRef("torchvision.models", "resnet18")
    ref = parse("a/nets.py:Maker.resnet(depth=-50, widths=[8, 16], act='relu', norm=None)")
    kwargs = {"depth": -50, "widths": [8, 16], "act": "relu", "norm": None}
    assert ref == PythonRef("a/nets.py", "Maker.resnet", kwargs)
    assert parse(str(ref)) == ref
    assert parse("model.onnx") == FileRef(Path("model.onnx"))


@pytest.mark.parametrize(
    "call",
    ["(depth=__import__('os'))", "(50)", "(**{})", "(depth=1 +)", "(depth=x)", "(a=1)(b=2)", "(a=1,a=2)"],
)
def test_arguments_are_keyword_literals_only(call: str) -> None:
    with pytest.raises(UsageError, match="keyword arguments with literal values"):
        parse("nets.py:net" + call)


def test_a_factory_in_a_file_is_called_with_its_arguments(nets: Path) -> None:
    assert len(load(f"{nets}:net(depth=5)").layers) == 5
    assert len(load(f"{nets}:Net").layers) == 2
    assert not load(f"{nets}:net").training


def test_example_inputs_come_from_the_file_and_follow_the_arguments(nets: Path) -> None:
    loaded = open_model(f"{nets}:net(width=7, depth=1)")
    (x,) = loaded.example_inputs()
    assert x.shape == (2, 7)
    assert loaded.model(x).shape == (2, 7)


def test_inputs_on_the_command_line_come_before_those_in_the_file(nets: Path) -> None:
    loaded = open_model(f"{nets}:net", inputs=["4x3:float64"])
    (x,) = loaded.example_inputs()
    assert (x.shape, x.dtype) == ((4, 3), torch.float64)
    assert torch.equal(x, loaded.example_inputs()[0]), "the same values every time"


def test_a_module_is_named_by_its_dotted_name(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(nets.parent)
    assert len(load("nets:net(depth=1)").layers) == 1
    assert isinstance(load("torch.nn:Linear(in_features=2, out_features=3)"), torch.nn.Linear)


def test_packages_installed_elsewhere_are_nobodys_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lib" / "site-packages" / "elsewhere"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import torch\ndef net(): return torch.nn.ReLU()\n")
    monkeypatch.syspath_prepend(package.parent)
    noted = of(load("elsewhere:net"))
    assert noted is not None
    assert noted["files"] == []


def test_a_module_in_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mynet_here.py").write_text("import torch\ndef net(): return torch.nn.ReLU()\n")
    monkeypatch.chdir(tmp_path)
    assert isinstance(load("mynet_here:net"), torch.nn.ReLU)


@pytest.mark.parametrize(
    ("ref", "problem", "words"),
    [
        ("{nets}:nett", LoadError, "no 'nett'.*Net, broken, net, number"),
        ("{nets}:broken", LoadError, "ValueError: on purpose over two lines"),
        ("{nets}:number", LoadError, "returned a int, not a torch.nn.Module"),
        ("{nets}:net(colour='red')", LoadError, r"unexpected keyword.*It takes \(depth=2"),
        ("{nets}", UsageError, "does not say which function.*nets.py:number .it defines Net"),
        ("{nets}.missing.py:net", LoadError, "no such file"),
        ("no.such.module:net", LoadError, "no module 'no'"),
        ("missing.onnx", LoadError, "no such file"),
        ("", UsageError, "empty"),
    ],
)
def test_what_cannot_be_loaded_is_said(nets: Path, ref: str, problem: type[BntoolError], words: str) -> None:
    with pytest.raises(problem, match=words):
        load(ref.format(nets=nets))


def test_no_inputs_known_says_how_to_give_them() -> None:
    loaded = open_model("torch.nn:ReLU")
    assert not loaded.has_inputs
    with pytest.raises(UsageError, match="--input 1x3x224x224"):
        loaded.example_inputs()


def test_input_specs() -> None:
    assert parse_input("1x3x8x8") == InputSpec("", (1, 3, 8, 8), "float32")
    assert parse_input("ids:2x16:int64") == InputSpec("ids", (2, 16), "int64")
    assert parse_input("5:int32") == InputSpec("", (5,), "int32")
    named = open_model("torch.nn:ReLU", inputs=["input:2x3"]).example_inputs()
    assert named["input"].shape == (2, 3)


@pytest.mark.parametrize("text", ["", "axb", "1x0x3", "1x2:float31", "1x2:", "x:y:1x2"])
def test_input_specs_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError, match="--input"):
        parse_input(text)


LAZY = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.LazyConv2d(2, 1))

def example_inputs():
    return (torch.randn(2, 3, 6, 6),)
"""


def test_lazy_parts_have_sizes_and_are_the_same_every_time(tmp_path: Path) -> None:
    place = tmp_path / "lazy.py"
    place.write_text(LAZY)
    first, second = (load(f"{place}:net") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    x = torch.randn(2, 3, 6, 6)
    for name in ("bundle", "values.safetensors"):
        save(bntool.fold(first, x).model, tmp_path / name)
    assert torch.allclose(load(tmp_path / "bundle")(x), first(x), atol=1e-5)
    folded = load(f"{place}:net", weights=tmp_path / "values.safetensors")
    assert torch.allclose(folded(x), first(x), atol=1e-5)


def test_lazy_parts_without_inputs_are_one_message(tmp_path: Path) -> None:
    place, values = tmp_path / "lazy.py", tmp_path / "values.safetensors"
    place.write_text(LAZY)
    save(load(f"{place}:net"), values)
    without = tmp_path / "without.py"
    without.write_text(LAZY.replace("def example_inputs", "def other_inputs"))
    with pytest.raises(LoadError, match=r"have no size yet.*Pass --input"):
        load(f"{without}:net", weights=values)
