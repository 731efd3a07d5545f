"""Where data come from: digits, a factory in Python code, an archive of arrays, a folder of images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bntool.errors import LoadError, UsageError
from bntool.sources import python_ref
from bntool.sources.importing import import_place, said
from bntool.sources.refs import PythonRef, parse
from bntool.study.data import Data, Part, split, standardised

FORMS = "digits, file.py:factory, pkg.mod:factory, a .npz or .safetensors with x and y, or a folder of images"
#: examples read from an endless or huge iterable, at most
MOST_EXAMPLES = 20_000
#: keys that hold the target where an item is a dict
TARGETS = ("y", "target", "targets", "label", "labels")
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"}


def load_data(ref: Any, *, image_size: tuple[int, int] = (32, 32)) -> Data:
    """The data that `ref` names (see FORMS), or data given as objects: a Data, or what a factory may return.

    Units: `image_size` is (height, width) in pixels, for folders of images.
    Raises: UsageError when the reference makes no sense, LoadError when it cannot be read.
    """
    if isinstance(ref, Data):
        return ref
    if not isinstance(ref, str | Path):
        return from_object(ref, "data")
    text = str(ref)
    if text == "digits":
        return digits()
    path = Path(text)
    if path.is_dir():
        return image_folder(path, image_size)
    if path.suffix in (".npz", ".safetensors"):
        return from_arrays(read_arrays(path), path.name)
    parsed = parse(text)
    if isinstance(parsed, PythonRef):
        return from_factory(parsed)
    raise UsageError("no such data", where=text, next=f"Data are written as {FORMS}.")


def digits() -> Data:
    """8 x 8 grey digits that come with scikit-learn: 1437 for training, 360 for testing.

    Shapes: inputs (N, 1, 8, 8). Raises: LoadError without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as problem:
        raise LoadError(
            "scikit-learn is not installed", where="digits", next="pip install 'bntool[study]'"
        ) from problem
    found = load_digits()
    images = torch.tensor(found.images / 16.0, dtype=torch.float32).unsqueeze(1)
    return standardised(split("digits", (images,), torch.tensor(found.target, dtype=torch.int64)))


def read_arrays(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return dict(archive)
        from safetensors.torch import load_file

        return dict(load_file(path))
    except Exception as problem:
        raise LoadError(f"cannot read it: {problem}", where=str(path), next="Is it whole?") from problem


def from_arrays(arrays: Mapping[str, Any], name: str) -> Data:
    """x and y; x_test and y_test too where the split is given.

    Raises: LoadError when they are not there.
    """
    if "x" not in arrays and "x_train" in arrays:
        arrays = {**arrays, "x": arrays["x_train"], "y": arrays.get("y_train")}
    if arrays.get("x") is None or arrays.get("y") is None:
        held = ", ".join(arrays) or "nothing"
        raise LoadError(f"it holds {held}", where=name, next="It has to hold x and y (and x_test, y_test).")
    part = pair(arrays["x"], arrays["y"], name)
    if "x_test" in arrays and "y_test" in arrays:
        return Data(name, part, pair(arrays["x_test"], arrays["y_test"], name))
    return split(name, part.inputs, part.targets)


def pair(x: Any, y: Any, name: str) -> Part:
    inputs = tuple(as_input(v) for v in x) if isinstance(x, tuple) else (as_input(x),)
    targets = as_target(y)
    if any(len(v) != len(targets) for v in inputs):
        raise LoadError(f"{len(inputs[0])} inputs but {len(targets)} targets", where=name)
    return Part(inputs, targets)


def as_input(value: Any) -> Tensor:
    """Floats as float32, bytes scaled to 0..1; other integers stay (they are indices, as token ids)."""
    tensor = torch.as_tensor(value)
    if tensor.dtype == torch.uint8:
        return tensor.float() / 255.0
    return tensor.float() if tensor.is_floating_point() else tensor.long()


def as_target(value: Any) -> Tensor:
    tensor = torch.as_tensor(value)
    return tensor.float() if tensor.is_floating_point() else tensor.long()


def from_factory(ref: PythonRef) -> Data:
    factory = python_ref.find(import_place(ref), ref)
    try:
        made = factory(**ref.kwargs) if callable(factory) else factory
    except Exception as problem:
        raise LoadError(f"calling it raised {said(problem)}", where=str(ref)) from problem
    return from_object(made, str(ref))


def from_object(made: Any, name: str) -> Data:
    """What a factory may return: a dict of arrays, (x, y) or (x, y, x_test, y_test), a data set or loader,
    or a (train, test) pair of them.
    """
    if isinstance(made, Data):
        return made
    if isinstance(made, Mapping):
        if "train" in made and "test" in made:
            return Data(name, from_examples(made["train"], name), from_examples(made["test"], name))
        return from_arrays(made, name)
    if isinstance(made, tuple | list) and made and all(is_array(v) for v in made):
        return from_arrays(dict(zip(("x", "y", "x_test", "y_test"), made, strict=False)), name)
    if len(made) == 2 if isinstance(made, tuple) else is_split(made):
        return Data(name, from_examples(made[0], name), from_examples(made[1], name))
    part = from_examples(made, name)
    return split(name, part.inputs, part.targets)


def is_split(made: Any) -> bool:
    """Whether it is a list of two data sets or loaders, as random_split gives them, not of two examples."""
    kinds = (torch.utils.data.Dataset, torch.utils.data.DataLoader)
    return isinstance(made, list) and len(made) == 2 and all(isinstance(part, kinds) for part in made)


def is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def from_examples(source: Any, name: str) -> Part:
    """Read a data set (single examples) or a loader (batches) into memory.

    Raises: LoadError when an item is not a pair of inputs and target.
    """
    if isinstance(source, tuple | list) and len(source) == 2 and all(is_array(v) for v in source):
        return pair(source[0], source[1], name)
    if not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
        advice = "Return tensors (x, y), a data set, a loader, or a (train, test) pair of them."
        raise LoadError(f"it gives a {type(source).__name__}", where=name, next=advice)
    batched = isinstance(source, torch.utils.data.DataLoader)
    inputs: list[Any] = []
    targets: list[Tensor] = []
    seen = 0
    for item in items(source):
        x, y = example(item, name)
        batched = batched or (isinstance(x, Tensor) and y.dim() == 1 and len(y) == len(x) > 1)
        inputs.append(x)
        targets.append(y)
        seen += len(y) if batched else 1
        if seen >= MOST_EXAMPLES:
            break
    return pair(join(inputs, batched), torch.cat(targets) if batched else torch.stack(targets), name)


def example(item: Any, name: str) -> tuple[Any, Tensor]:
    """(inputs, target) of a pair, or of a dict in which one key names the target. Raises: LoadError."""
    if isinstance(item, Mapping):
        found = [k for k in item if k in TARGETS]
        inputs = tuple(v for k, v in item.items() if k not in found)
        if len(found) == 1 and inputs:
            return (inputs if len(inputs) > 1 else inputs[0]), torch.as_tensor(item[found[0]])
        what = f"an item has the keys {', '.join(map(str, item))}"
        raise LoadError(what, where=name, next=f"One of them has to be the target: {', '.join(TARGETS)}.")
    if not (isinstance(item, tuple | list) and len(item) == 2):
        advice = "An item has to be (inputs, target), or a dict with a target."
        raise LoadError(f"an item is a {type(item).__name__}", where=name, next=advice)
    return item[0], torch.as_tensor(item[1])


def items(source: Any) -> Iterable[Any]:
    """Map-style data sets need not stop iterating by themselves: go by their length."""
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        return (source[i] for i in range(len(source)))
    found: Iterable[Any] = source
    return found


def join(values: list[Any], batched: bool) -> Any:
    if values and isinstance(values[0], tuple | list):
        return tuple(join(list(column), batched) for column in zip(*values, strict=True))
    tensors = [torch.as_tensor(v) for v in values]
    return torch.cat(tensors) if batched else torch.stack(tensors)


def image_folder(root: Path, size: tuple[int, int]) -> Data:
    """One folder a class, images inside; train/ and test/ above them where the split is given.

    Shapes: inputs (N, 3, H, W), 0..1, resized to `size`. Raises: LoadError.
    """
    if (root / "train").is_dir() and (root / "test").is_dir():
        names = class_folders(root / "train")
        parts = (read_images(root / "train", names, size), read_images(root / "test", names, size))
        return standardised(Data(root.name, *parts))
    whole = read_images(root, class_folders(root), size)
    return standardised(split(root.name, whole.inputs, whole.targets))


def class_folders(root: Path) -> list[str]:
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and any(images_in(p)))
    if len(names) < 2:
        advice = "Put the images of each class into a folder of its own."
        raise LoadError("fewer than two folders with images", where=str(root), next=advice)
    return names


def images_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES)


def read_images(root: Path, names: list[str], size: tuple[int, int]) -> Part:
    try:
        from PIL import Image
    except ImportError as problem:
        raise LoadError("Pillow is not installed", where=str(root), next="pip install pillow") from problem
    inputs, targets = [], []
    for label, name in enumerate(names):
        for path in images_in(root / name):
            try:
                with Image.open(path) as image:
                    pixels = image.convert("RGB").resize((size[1], size[0]))
            except OSError as problem:
                raise LoadError("cannot read the image", where=str(path), next="Remove it.") from problem
            inputs.append(torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255.0)
            targets.append(label)
    return Part((torch.stack(inputs),), torch.tensor(targets))
