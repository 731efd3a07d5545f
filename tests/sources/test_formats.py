"""What is written loads back to the same numbers; what is damaged or dangerous does not load."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import torch
from torch import nn

import bntool
from bntool.edits import apply
from bntool.errors import BntoolError, LoadError, UsageError
from bntool.save import save
from bntool.sources import load, open_model, pt2_safety
from tests.random_norms import randomise_norms

NETS = """
import torch
from parts.block import Block

class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.block = Block(width)
        self.head = torch.nn.Linear(width, 3)
        self.tied = self.head

    def forward(self, x):
        return self.tied(self.block(x).mean((2, 3)))

def net(width=4):
    return Net(width)

def example_inputs():
    return (torch.randn(2, 3, 6, 6),)
"""
BLOCK = """
import torch

class Block(torch.nn.Sequential):
    def __init__(self, width):
        conv = torch.nn.Conv2d(3, width, 3, bias=False)
        super().__init__(conv, torch.nn.BatchNorm2d(width), torch.nn.ReLU())
"""
X = torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6)


@pytest.fixture(autouse=True)
def own_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def ref(tmp_path: Path) -> str:
    (tmp_path / "src" / "parts").mkdir(parents=True)
    (tmp_path / "src" / "parts" / "__init__.py").touch()
    (tmp_path / "src" / "parts" / "block.py").write_text(BLOCK)
    (tmp_path / "src" / "nets.py").write_text(NETS)
    return f"{tmp_path}/src/nets.py:net(width=5)"


@pytest.fixture
def edited(ref: str) -> nn.Module:
    """A model whose structure bntool changed: a norm gone, a bias there."""
    model = load(ref)
    apply(model, {"op": "replace", "path": "block.1", "module": {"type": "torch.nn.Identity"}})
    apply(model, {"op": "add_bias", "path": "block.0", "size": 5})
    nn.init.normal_(model.block[0].bias)
    return model


def in_a_new_process(path: Path, *flags: str) -> torch.Tensor:
    code = "import sys, torch; from bntool import load; m = load(sys.argv[1], trust='trust' in sys.argv); "
    code += "x = torch.linspace(-1, 1, 216).reshape(2, 3, 6, 6); print(m(x).tolist())"
    line = [sys.executable, "-c", code, str(path), *flags]
    env = {**os.environ, "PYTHONPATH": str(Path(bntool.__file__).parents[1])}
    done = subprocess.run(line, capture_output=True, text=True, check=True, cwd=path.parent, env=env)
    return torch.tensor(json.loads(done.stdout))


def test_a_bundle_loads_in_a_new_process_without_the_original_files(
    edited: nn.Module, tmp_path: Path
) -> None:
    save(edited, tmp_path / "out")
    for file in sorted((tmp_path / "src").rglob("*.py")):
        file.unlink()
    torch.testing.assert_close(in_a_new_process(tmp_path / "out"), edited(X))
    assert not [p for p in (tmp_path / "out").rglob("*") if p.suffix in (".pt", ".pkl")]
    loaded = open_model(str(tmp_path / "out"))
    assert isinstance(loaded.model.block[1], nn.Identity)
    assert loaded.example_inputs()[0].shape == (2, 3, 6, 6)


def test_a_bundle_keeps_the_arguments_as_they_were(tmp_path: Path) -> None:
    code = "import torch\n\ndef net(shape=(), names=None):\n    assert isinstance(shape, tuple)\n"
    (tmp_path / "nets.py").write_text(code + "    return torch.nn.Unflatten(1, shape)\n")
    save(load(f"{tmp_path}/nets.py:net(shape=(2, 3), names={{'a'}})"), tmp_path / "out")
    assert load(str(tmp_path / "out")).unflattened_size == (2, 3)


def test_a_graph_that_a_factory_makes_folds_into_a_bundle(tmp_path: Path) -> None:
    plain = "nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))"
    code = f"from torch import fx, nn\n\ndef net():\n    return fx.symbolic_trace({plain})\n"
    (tmp_path / "nets.py").write_text(code)
    model = randomise_norms(load(f"{tmp_path}/nets.py:net").eval(), (X,))
    folded = bntool.fold(model, (X,)).model
    save(folded, tmp_path / "out")
    again = load(str(tmp_path / "out")).eval()
    assert not [m for m in again.modules() if isinstance(m, nn.BatchNorm2d)]
    assert torch.equal(again(X), folded(X))


def test_a_graph_that_nobody_loaded_is_no_bundle(edited: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not loaded by a reference") as caught:
        save(torch.fx.symbolic_trace(edited), tmp_path / "out")
    assert caught.value.where == str(tmp_path / "out")


def test_a_bundle_of_a_bundle(edited: nn.Module, tmp_path: Path) -> None:
    save(edited, tmp_path / "first")
    save(load(str(tmp_path / "first")), tmp_path / "second")
    torch.testing.assert_close(load(str(tmp_path / "second"))(X), edited(X))


def test_a_bundle_keeps_dtype_and_the_inputs_given(ref: str, tmp_path: Path) -> None:
    loaded = open_model(ref, inputs=["3x3x9x9:float16"])
    save(loaded.model.half(), tmp_path / "half", inputs=loaded.given)
    back = open_model(str(tmp_path / "half"))
    assert back.model.head.weight.dtype == torch.float16
    assert back.example_inputs()[0].shape == (3, 3, 9, 9)
    assert back.example_inputs()[0].dtype == torch.float16


def test_a_bundle_from_elsewhere_runs_only_with_trust(
    edited: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "out"
    save(edited, bundle)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another account"))
    with pytest.raises(LoadError, match=r"carries code.*not run.*--trust"):
        load(str(bundle))
    torch.testing.assert_close(load(str(bundle), trust=True)(X), edited(X))


@pytest.mark.parametrize("change", ["code", "arguments", "one more file"])
def test_a_bundle_changed_after_it_was_written_is_not_run(
    edited: nn.Module, tmp_path: Path, change: str
) -> None:
    bundle = tmp_path / "out"
    save(edited, bundle)
    if change == "code":
        with (bundle / "code" / "nets.py").open("a") as code:
            code.write("print('hello')\n")
    elif change == "one more file":
        (bundle / "code" / "torch.py").write_text("print('hello')\n")
    else:
        document = json.loads((bundle / "model.json").read_text())
        document["source"]["factory"] = "print"
        (bundle / "model.json").write_text(json.dumps(document))
    with pytest.raises(LoadError, match="not run"):
        load(str(bundle))


def test_weights_bring_their_structure_along(edited: nn.Module, ref: str, tmp_path: Path) -> None:
    save(edited, tmp_path / "w.safetensors")
    back = load(ref, weights=tmp_path / "w.safetensors")
    assert isinstance(back.block[1], nn.Identity)
    torch.testing.assert_close(back(X), edited(X))
    with pytest.raises(LoadError, match=r"has other shapes for|lacks"):
        load(ref.replace("width=5", "width=6"), weights=tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="--weights"):
        load(str(tmp_path / "w.safetensors"))


def test_plain_checkpoints_load_as_trainers_wrap_them(ref: str, tmp_path: Path) -> None:
    model = load(ref)
    wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}
    torch.save(wrapped, tmp_path / "w.pt")
    torch.testing.assert_close(load(ref, weights=tmp_path / "w.pt")(X), model(X))
    with pytest.raises(LoadError, match=r"holds weights.*--weights"):
        load(str(tmp_path / "w.pt"))


class Trap:
    """Its pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["model.pt", "weights.pt"])
def test_a_pickle_is_not_run_without_trust(ref: str, tmp_path: Path, name: str) -> None:
    torch.save({"a": Trap(tmp_path / "sprung")}, tmp_path / name)
    with pytest.raises(LoadError):
        load(str(tmp_path / name))
    with pytest.raises(LoadError):
        load(ref, weights=tmp_path / name, trust=True)
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_loads_with_trust(edited: nn.Module, tmp_path: Path) -> None:
    save(edited, tmp_path / "src" / "m.pt")
    with pytest.raises(LoadError, match=r"pickle.*--trust"):
        load(str(tmp_path / "src" / "m.pt"))
    torch.testing.assert_close(in_a_new_process(tmp_path / "src" / "m.pt", "trust"), edited(X))


def test_pt2_and_back(edited: nn.Module, tmp_path: Path) -> None:
    save(edited, tmp_path / "m.pt2", example_inputs=(X,))
    loaded = open_model(str(tmp_path / "m.pt2"))
    assert torch.equal(loaded.example_inputs()[0], X)
    torch.testing.assert_close(loaded.model.module()(X), edited(X))
    save(loaded.model, tmp_path / "again.pt2")
    torch.testing.assert_close(load(str(tmp_path / "again.pt2")).module()(X), edited(X))


def altered(source: Path, target: Path, change: Callable[[str, bytes], bytes], **more: bytes) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        for name, content in more.items():
            new.writestr(f"{old.namelist()[0].partition('/')[0]}/{name}", content)
    return target


def test_a_pt2_that_could_run_code_is_refused(edited: nn.Module, tmp_path: Path) -> None:
    good = tmp_path / "m.pt2"
    batch = torch.export.Dim("batch", min=2, max=9)
    save(torch.export.export(edited, (X,), dynamic_shapes=({0: batch},)), good)
    pt2_safety.check(altered(good, tmp_path / "same.pt2", lambda name, data: data))
    sprung = tmp_path / "sprung"

    def replaced(old: bytes, new: bytes) -> Callable[[str, bytes], bytes]:
        return lambda name, data: data.replace(old, new) if name.endswith(".json") else data

    trap = pickle.dumps(Trap(sprung), protocol=2)
    call = b"eval(chr(112))"
    cases = [
        altered(good, tmp_path / "a.pt2", replaced(b"Symbol('s", b"open('s")),
        altered(good, tmp_path / "b.pt2", replaced(b'"use_pickle": false', b'"use_pickle": true')),
        altered(good, tmp_path / "c.pt2", replaced(b"torch.ops.aten.conv2d.default", b"torch.os.system")),
        altered(good, tmp_path / "d.pt2", lambda n, d: trap if n.endswith(".pt") else d),
        altered(good, tmp_path / "e.pt2", lambda n, d: d, **{"data/constants/custom_obj_0": trap}),
        altered(good, tmp_path / "f.pt2", lambda n, d: d, **{"data/aotinductor/model/x.so": b"elf"}),
        altered(good, tmp_path / "g.pt2", lambda n, d: d, **{"data/weights/model.pt": trap}),
        altered(good, tmp_path / "h.pt2", replaced(b'"Symbol(', b'"' + call + b"+Symbol(")),
    ]
    for case in cases:
        with pytest.raises(LoadError, match="--trust"):
            load(str(case))
    assert not sprung.exists()


def test_onnx_and_back_without_torch(edited: nn.Module, tmp_path: Path) -> None:
    save(edited, tmp_path / "m.onnx", example_inputs=(X,))
    code = "import sys; from bntool.sources import open_model; m = open_model(sys.argv[1]); "
    code += "print([a.shape for a in m.example_inputs().values()], 'torch' in sys.modules)"
    line = [sys.executable, "-c", code, str(tmp_path / "m.onnx")]
    assert subprocess.run(line, capture_output=True, text=True, check=True).stdout == "[(2, 3, 6, 6)] False\n"
    save(load(str(tmp_path / "m.onnx")), tmp_path / "again.onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "again.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    np.testing.assert_allclose(y, edited(X).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_onnx_data_outside_its_folder_is_refused(edited: nn.Module, tmp_path: Path) -> None:
    save(edited, tmp_path / "m.onnx", example_inputs=(X,))
    model = onnx_ir.load(tmp_path / "m.onnx")
    (tmp_path / "inner").mkdir()
    onnx_ir.save(model, tmp_path / "inner" / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    assert load(str(tmp_path / "inner" / "m.onnx"))
    raw = (tmp_path / "inner" / "m.onnx").read_bytes()
    (tmp_path / "inner" / "m.onnx").write_bytes(raw.replace(b"m.data", b"../m.d"))
    (tmp_path / "m.d").write_bytes((tmp_path / "inner" / "m.data").read_bytes())
    with pytest.raises(LoadError):
        load(str(tmp_path / "inner" / "m.onnx"))


def test_missing_onnx_data_is_named(edited: nn.Module, tmp_path: Path) -> None:
    save(edited, tmp_path / "m.onnx", example_inputs=(X,))
    model = onnx_ir.load(tmp_path / "m.onnx")
    onnx_ir.save(model, tmp_path / "n.onnx", external_data="n.data", size_threshold_bytes=0)
    (tmp_path / "n.data").unlink()
    with pytest.raises(LoadError, match=r"its data file .* is missing"):
        load(str(tmp_path / "n.onnx"))


def test_weights_that_nothing_could_load_are_not_written(ref: str, tmp_path: Path) -> None:
    """Merging leaves layers that the factory does not build, and that no plan makes."""
    graph = bntool.fold(load(ref).eval(), (X,), form="graph", merge=True).model
    for name in ("w.safetensors", "folder"):
        with pytest.raises(UsageError, match="one that none makes"):
            save(graph, tmp_path / name)
    assert not list(tmp_path.glob("w*"))


@pytest.mark.parametrize("name", ["m.onnx", "m.pt2", "m.pt", "w.safetensors", "w.pt", "bundle"])
@pytest.mark.parametrize("damage", ["half", "nothing", "noise"])
def test_damaged_files_end_in_one_message(
    edited: nn.Module, ref: str, tmp_path: Path, name: str, damage: str
) -> None:
    target = tmp_path / (name if "." in name else "bundle")
    save(edited, tmp_path / ("w.pt2" if name == "w.pt" else name), example_inputs=(X,))
    if name == "w.pt":
        torch.save(edited.state_dict(), target)
    victim = target / "weights.safetensors" if target.is_dir() else target
    whole = victim.read_bytes()
    content = {"half": whole[: len(whole) // 2], "nothing": b"", "noise": bytes(range(256)) * 9}[damage]
    victim.write_bytes(content)
    with pytest.raises(LoadError) as caught:
        load(ref, weights=target) if name[0] == "w" else load(str(target), trust=True)
    assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_model_json_ends_in_one_message(edited: nn.Module, tmp_path: Path) -> None:
    save(edited, tmp_path / "out")
    for text in ("", "[]", "{}", '{"schema_version": 1, "source": 3}', "\x00"):
        (tmp_path / "out" / "model.json").write_text(text)
        with pytest.raises(LoadError):
            load(str(tmp_path / "out"), trust=True)


@pytest.mark.parametrize("name", ["m.pt2", "m.safetensors", "m.pt", "out"])
def test_an_existing_target_needs_force_and_is_replaced_whole(
    edited: nn.Module, tmp_path: Path, name: str
) -> None:
    save(edited, tmp_path / name, example_inputs=(X,))
    with pytest.raises(UsageError, match="--force"):
        save(edited, tmp_path / name, example_inputs=(X,))
    save(edited, tmp_path / name, example_inputs=(X,), force=True)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name not in ("src", "state")) == [name]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.hook = lambda: None  # cannot be pickled
    (tmp_path / "m.pt").write_text("before")
    with pytest.raises(BntoolError):
        save(model, tmp_path / "m.pt", force=True)
    assert (tmp_path / "m.pt").read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]


def test_what_a_format_cannot_take_is_said(edited: nn.Module, tmp_path: Path) -> None:
    for model, name, words in [
        (edited, "m.txt", "Use .onnx, .pt2"),
        (edited, "m.pt2", "--input"),
        (nn.Linear(1, 1), "out", "factory"),
        (3, "m.pt", "no model"),
    ]:
        with pytest.raises(UsageError, match=words):
            save(model, tmp_path / name)
    assert not [p for p in tmp_path.iterdir() if p.name not in ("src", "state")]
