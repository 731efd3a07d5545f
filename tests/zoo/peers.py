"""`make peers`: the same networks folded by other tools and by bntool, side by side in one run.

For each tool: norms left of those that run, whether the outputs are wrong, seconds. ARGS: names to select.
torch.fx and jit.freeze work in float64 here; the ONNX tools in float32, on one file exported with its norms.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.random_norms import randomise_norms
from tests.zoo.check import relative_error, run

SAMPLES = ("siamese", "levit", "unet", "preact_resnet", "repvgg", "branchy")
MODELS = (
    *(("sample", name, "") for name in SAMPLES),
    ("torchvision", "resnet18", "2x3x64x64"),
    ("torchvision", "mobilenet_v2", "2x3x64x64"),
    ("torchvision", "densenet121", "2x3x64x64"),
    ("torchvision", "shufflenet_v2_x1_0", "2x3x64x64"),
    ("timm", "levit_128s", "2x3x224x224"),
    ("timm", "ghostnet_050", "2x3x64x64"),
    ("timm", "inception_next_atto", "2x3x64x64"),
    ("timm", "swiftformer_xs", "2x3x224x224"),
)
# float32 tools may differ by rounding through a hundred layers, float64 ones by far less
LIMIT = {torch.float32: 1e-3, torch.float64: 1e-9}
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Cell:
    """What one tool made of one network; `failure` if it made nothing."""

    left: int = 0
    wrong: bool = False
    seconds: float = 0.0
    failure: str = ""

    def __str__(self) -> str:
        if self.failure:
            return self.failure[:17]
        return f"{self.left:4}{'  WRONG' if self.wrong else '       '}{self.seconds:6.2f}"


def network_of(source: str, name: str, shape: str) -> tuple[nn.Module, Inputs]:
    if source == "sample":
        module = importlib.import_module(f"sample_models.{name}")
        return getattr(module, name)().eval(), module.example_inputs()
    from tests.vision import network

    return network(source, name), (torch.randn([int(n) for n in shape.split("x")]),)


def fx_fuse(model: nn.Module, inputs: Inputs) -> nn.Module:
    from torch.fx.experimental.optimization import fuse

    return fuse(model)


def bntool_fold(model: nn.Module, inputs: Inputs) -> nn.Module:
    from bntool import fold

    return fold(model, inputs).model


def timed(tool: Callable[[nn.Module, Inputs], nn.Module], model: nn.Module, inputs: Inputs) -> Cell:
    """A tool from module to module, in float64."""
    model, inputs = copy.deepcopy(model).double(), tuple(x.double() for x in inputs)
    want = run(model, inputs)[0]
    start = time.perf_counter()
    folded = tool(model, inputs)
    seconds = time.perf_counter() - start
    got, left = run(folded, inputs)
    return Cell(left, relative_error(got, want) > LIMIT[torch.float64], seconds)


def freeze(model: nn.Module, inputs: Inputs) -> Cell:
    model, inputs = copy.deepcopy(model).double(), tuple(x.double() for x in inputs)
    want = run(model, inputs)[0]
    start = time.perf_counter()
    frozen = torch.jit.freeze(torch.jit.trace(model, inputs, check_trace=False, strict=False))
    seconds = time.perf_counter() - start
    left = sum(n.kind() == "aten::batch_norm" for n in frozen.inlined_graph.nodes())
    return Cell(left, relative_error(run(frozen, inputs)[0], want) > LIMIT[torch.float64], seconds)


def onnx_file(model: nn.Module, inputs: Inputs, path: Path) -> None:
    """The model with its norms: the TorchScript exporter keeps them when told to preserve the mode."""
    mode = torch.onnx.TrainingMode.PRESERVE
    torch.onnx.export(model, inputs, path, training=mode, do_constant_folding=False, dynamo=False)


def judged(path: Path, seconds: float, inputs: Inputs, want: list[Tensor]) -> Cell:
    """The ONNX file a tool wrote, run without any further optimisation."""
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    got = [torch.from_numpy(np.asarray(out)) for out in session.run(None, feed)]
    nodes = onnx.load(path).graph.node
    left = sum(n.op_type == "BatchNormalization" for n in nodes)
    return Cell(left, relative_error(got, want) > LIMIT[torch.float32], seconds)


def slim(path: Path, inputs: Inputs, want: list[Tensor]) -> Cell:
    import onnxslim

    target = path.with_suffix(".slim.onnx")
    start = time.perf_counter()
    onnxslim.slim(str(path), str(target))
    return judged(target, time.perf_counter() - start, inputs, want)


def runtime(path: Path, inputs: Inputs, want: list[Tensor]) -> Cell:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    target = path.with_suffix(".ort.onnx")
    options.optimized_model_filepath = str(target)
    start = time.perf_counter()
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return judged(target, time.perf_counter() - start, inputs, want)


def attempted(work: Callable[[], Cell]) -> Cell:
    try:
        return work()
    except Exception as error:  # a tool that fails on a network is a cell of the table
        return Cell(failure=type(error).__name__)


def compare(source: str, name: str, shape: str) -> dict[str, Cell]:
    torch.manual_seed(0)
    model, inputs = network_of(source, name, shape)
    randomise_norms(model, inputs)
    want, norms = run(model, inputs)
    cells = {
        "norms": Cell(norms),
        "torch.fx fuse": attempted(lambda: timed(fx_fuse, model, inputs)),
        "torch.jit.freeze": attempted(lambda: freeze(model, inputs)),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        exported = attempted(lambda: onnx_file(model, inputs, path) or Cell())
        for tool, work in (("onnxslim", slim), ("onnxruntime", runtime)):
            cells[tool] = exported if exported.failure else attempted(lambda w=work: w(path, inputs, want))
    cells["bntool"] = attempted(lambda: timed(bntool_fold, model, inputs))
    return cells


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] in ("sample", "torchvision", "timm"):
        warnings.simplefilter("ignore")
        logging.disable()
        cells = compare(*sys.argv[1:])
        print("\n" + json.dumps({tool: asdict(cell) for tool, cell in cells.items()}))
        return
    tools = ("torch.fx fuse", "torch.jit.freeze", "onnxslim", "onnxruntime", "bntool")
    print(f"{'':22}{'norms':>6}  " + "".join(f"{tool:19}" for tool in tools))
    print(f"{'':28}  " + "left          s    " * len(tools))
    for model in MODELS:
        if len(sys.argv) == 1 or model[1] in sys.argv[1:]:
            print(row(model, tools), flush=True)


def row(model: tuple[str, str, str], tools: tuple[str, ...]) -> str:
    command = [sys.executable, "-m", "tests.zoo.peers", *model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"{model[1]:22} failed: {done.stderr.strip().splitlines()[-1]}"
    cells = {tool: Cell(**cell) for tool, cell in json.loads(done.stdout.splitlines()[-1]).items()}
    return f"{model[1]:22}{cells['norms'].left:6}  " + "".join(f"{cells[tool]!s:19}" for tool in tools)


if __name__ == "__main__":
    main()
