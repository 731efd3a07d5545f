"""`make cost`: what folding costs, as ratios against other tools, in one run. ARGS: names of parts.

time     bntool.fold against torch.fx's fuse, seconds on the same model, verification apart
memory   peak memory of fold_ over the model's own
latency  the folded model against the same model with its folded norms deleted
onnx     `bntool fold` against onnxslim as whole processes on a ResNet-50 file: seconds and peak memory
large    a model of more than 2 GB in external data: peak memory over the file's size
"""

from __future__ import annotations

import copy
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS = 9
LATENCY_ROUNDS = 100
WARM_UP_ROUNDS = 5
LARGE_WIDTH = 8192
LARGE_LAYERS = 9
MIB = 2**20


@dataclass(frozen=True)
class Ratio:
    """One line: what was measured, both figures, and what their ratio may be."""

    what: str
    ours: str
    theirs: str
    ratio: float
    limit: float

    def __str__(self) -> str:
        verdict = "ok" if self.ratio <= self.limit else "TOO MUCH"
        return f"{self.what:44}{self.ours:>12}{self.theirs:>14}{self.ratio:8.2f}{self.limit:8.2f}  {verdict}"


def model_of(name: str) -> Any:
    """With random statistics: the default ones give layers no bias, which spares half of the work."""
    import torch

    from tests.random_norms import has_statistics
    from tests.vision import network

    model = network("torchvision", name)
    torch.manual_seed(0)
    with torch.no_grad():
        for norm in filter(has_statistics, model.modules()):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.3)
    return model


def compared(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of "ours" and "theirs", and the median "ratio" of their pairs.

    They are run in turns, whoever is first, so that whatever else the machine does meets both alike. The
    clock stops when the result is there: giving its memory back is no part of making it.
    """
    times: dict[str, list[float]] = {key: [] for key in works}
    for turn in range(rounds):
        for key in list(works)[:: 1 if turn % 2 else -1]:
            gc.collect()
            start = time.perf_counter()
            result = works[key]()
            times[key].append(time.perf_counter() - start)
            del result
    pairs = zip(times["ours"], times["theirs"], strict=True)
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    return {key: statistics.median(values) for key, values in times.items()} | {"ratio": ratio}


def measure_time(name: str) -> dict[str, float]:
    from torch.fx.experimental.optimization import fuse

    from bntool import fold

    model = model_of(name)
    rounds = 3 if name == "regnet_y_128gf" else ROUNDS
    works = {"ours": lambda: fold(model, verify=False), "theirs": lambda: fuse(model)}
    return compared(works, rounds)


def resident(field: str) -> int:
    """Bytes of memory this process holds (`VmRSS`) or has held at most (`VmHWM`)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def measure_memory(name: str) -> dict[str, float]:
    """Peak of fold_ over what the process held before, with the model in it."""
    from torch import nn

    from bntool import fold_

    warm_up = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    fold_(warm_up)  # what is imported on first use is no cost of the model
    model = model_of(name)
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    fold_(model)
    return {"ours": size + resident("VmHWM") - before, "theirs": size}


def without_norms(model: object, names: set[str]) -> object:
    from torch import nn

    model = copy.deepcopy(model)
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())
    return model


def measure_latency(name: str) -> dict[str, float]:
    """On one image of the size the network is made for.

    (torch takes 2 or 3 microseconds longer to call a convolution that has a bias, which the one without its
    norms has not: on images so small that a layer takes 100, that is the 2 % which are allowed.)
    """
    import torch

    from bntool import fold

    model, x = model_of(name), torch.randn(1, 3, 224, 224)
    result = fold(model, (x,), verify=False)
    bare = without_norms(model, {entry.name for entry in result.report.folded})
    works = {"ours": lambda: result.model(x), "theirs": lambda: bare(x)}
    with torch.inference_mode():
        compared(works, WARM_UP_ROUNDS)
        return compared(works, LATENCY_ROUNDS)


def in_a_process(part: str, name: str) -> dict[str, float]:
    """A measurement in a fresh process: memory and caches start empty."""
    command = [sys.executable, "-m", "tests.zoo.cost", f"_{part}", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{part} {name}: {done.stderr.strip().splitlines()[-1]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def seconds(part: str, name: str, what: str, limit: float) -> Ratio:
    m = in_a_process(part, name)
    return Ratio(what, f"{m['ours']:.3f} s", f"{m['theirs']:.3f} s", m["ratio"], limit)


def part_time() -> Iterator[Ratio]:
    for name in ("resnet152", "regnet_y_128gf"):
        yield seconds("time", name, f"fold / torch.fx fuse, {name}", 0.5)


def part_memory() -> Iterator[Ratio]:
    for name in ("resnet152", "regnet_y_32gf"):
        m = in_a_process("memory", name)
        sizes = [f"{m[key] / MIB:.0f} MiB" for key in ("ours", "theirs")]
        yield Ratio(f"peak of fold_ / model, {name}", *sizes, m["ours"] / m["theirs"], 1.10)


def part_latency() -> Iterator[Ratio]:
    for name in ("resnet18", "mobilenet_v2", "resnet50"):
        yield seconds("latency", name, f"folded / norms deleted, {name}", 1.02)


@dataclass(frozen=True)
class Process:
    """What a command took. `cpu_s` is what stays telling on a busy machine. Units: `peak` in bytes."""

    seconds: float
    cpu_s: float
    peak: int


def whole_processes(commands: list[list[str]]) -> list[Process]:
    """The best of some runs of each command, from start to exit, taken in turns.

    All have the bytecode that an installer leaves: a checkout may be run where Python is told to write none.
    """
    with tempfile.TemporaryDirectory() as compiled:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for command in commands:
            _once(command, environment)
        rounds = [[_once(command, environment) for command in commands] for _ in range(3)]
    return [_best(runs) for runs in zip(*rounds, strict=True)]


def _best(runs: Sequence[Process]) -> Process:
    return Process(*(min(getattr(r, name) for r in runs) for name in ("seconds", "cpu_s", "peak")))


def _once(command: list[str], environment: Mapping[str, str]) -> Process:
    start = time.perf_counter()
    child = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=dict(environment)
    )
    assert child.stderr is not None
    message = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)}: {message.decode()[-300:]}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return Process(time.perf_counter() - start, cpu_s, usage.ru_maxrss * 1024)


def resnet50_file(path: Path) -> None:
    """A ResNet-50 with its norms still in the file."""
    code = (
        "import sys, torch\n"
        "from tests.vision import network\n"
        "from tests.random_norms import randomise_norms\n"
        "from tests.zoo.peers import onnx_file\n"
        "x = torch.randn(1, 3, 224, 224)\n"
        "model = randomise_norms(network('torchvision', 'resnet50'), (x,))\n"
        "onnx_file(model, (x,), sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True)


def part_onnx() -> Iterator[Ratio]:
    scripts = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "resnet50.onnx", Path(folder) / "out.onnx"
        resnet50_file(source)
        onnxslim = [str(scripts / "onnxslim"), str(source), str(target)]
        fold = [sys.executable, "-m", "bntool", "fold", str(source), "-o", str(target), "--force", "-q"]
        slim, unverified, verified = whole_processes([onnxslim, [*fold, "--no-verify"], fold])
        for label, ours, limit in (("fold --no-verify", unverified, 0.5), ("fold", verified, 1.0)):
            pair = (f"{ours.seconds:.2f} s", f"{slim.seconds:.2f} s")
            yield Ratio(f"{label} / onnxslim, time", *pair, ours.seconds / slim.seconds, limit)
            pair = (f"{ours.cpu_s:.2f} s", f"{slim.cpu_s:.2f} s")
            yield Ratio(f"{label} / onnxslim, processor time", *pair, ours.cpu_s / slim.cpu_s, limit)
            sizes = (f"{ours.peak / MIB:.0f} MiB", f"{slim.peak / MIB:.0f} MiB")
            yield Ratio(f"{label} / onnxslim, peak memory", *sizes, ours.peak / slim.peak, limit)


def large_file(path: Path) -> int:
    """1 x 1 convolutions with norms, over 2 GB of weights beside the file; written layer by layer."""
    import onnx
    from onnx import TensorProto, helper

    width, nodes, tensors = LARGE_WIDTH, [], []
    rng = np.random.default_rng(0)
    value = "x"
    with open(path.with_suffix(".data"), "wb") as data:
        for layer in range(LARGE_LAYERS):
            weight = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=(width, width, 1, 1))
            row = rng.normal(size=width, scale=width**-0.5).astype(np.float32)
            place = {"location": data.name.rpartition("/")[2], "offset": data.tell(), "length": 4 * width**2}
            weight.data_location = TensorProto.EXTERNAL
            weight.external_data.extend(
                onnx.StringStringEntryProto(key=k, value=str(v)) for k, v in place.items()
            )
            for shift in range(width):
                data.write(np.roll(row, shift).tobytes())
            tensors.append(weight)
            for name, low, high in (("s", 0.5, 1.5), ("b", -1, 1), ("m", -1, 1), ("v", 0.5, 1.5)):
                values = rng.uniform(low, high, width).astype(np.float32)
                tensors.append(onnx.numpy_helper.from_array(values, f"{name}{layer}"))
            nodes.append(helper.make_node("Conv", [value, f"w{layer}"], [f"c{layer}"]))
            statistics_of = [f"{name}{layer}" for name in "sbmv"]
            nodes.append(helper.make_node("BatchNormalization", [f"c{layer}", *statistics_of], [f"n{layer}"]))
            nodes.append(helper.make_node("Relu", [f"n{layer}"], [f"r{layer}"]))
            value = f"r{layer}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width, 1, 1]) for name in ("x", value)]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path.with_suffix(".data").stat().st_size


def part_large() -> Iterator[Ratio]:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "large.onnx", Path(folder) / "out.onnx"
        size = large_file(source)
        command = [
            sys.executable,
            "-m",
            "bntool",
            "fold",
            str(source),
            "-o",
            str(target),
            "--no-verify",
            "-q",
        ]
        ours = _once(command, os.environ)
        sizes = (f"{ours.peak / MIB:.0f} MiB", f"{size / MIB:.0f} MiB")
        yield Ratio(f"peak of fold / file, {ours.seconds:.0f} s", *sizes, ours.peak / size, 0.5)


PARTS = {
    "time": part_time,
    "memory": part_memory,
    "latency": part_latency,
    "onnx": part_onnx,
    "large": part_large,
}
MEASURES = {
    "_time": measure_time,
    "_memory": measure_memory,
    "_latency": measure_latency,
}


def main() -> int:
    if len(sys.argv) == 3 and sys.argv[1] in MEASURES:
        print(json.dumps(MEASURES[sys.argv[1]](sys.argv[2])))
        return 0
    print(f"{'':44}{'bntool':>12}{'against':>14}{'ratio':>8}{'limit':>8}")
    within = True
    for part in sys.argv[1:] or PARTS:
        try:
            for ratio in PARTS[part]():
                within &= ratio.ratio <= ratio.limit
                print(ratio, flush=True)
        except RuntimeError as error:
            within = False
            print(error, flush=True)
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
