"""Data from every place a user may have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, random_split

from bntool.errors import LoadError, UsageError
from bntool.study.data import REGRESSION, class_sorted
from bntool.study.datasets import load_data

X, Y = torch.randn(60, 5), torch.arange(60) % 3


def test_digits_are_1437_and_360_and_standardised() -> None:
    data = load_data("digits")
    assert (len(data.train), len(data.test), data.classes) == (1437, 360, 10)
    assert data.train.inputs[0].mean().abs() < 1e-5
    assert data.notes


def test_archives(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X.numpy(), y=Y.numpy())
    save_file({"x": X, "y": Y}, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.safetensors"):
        data = load_data(str(tmp_path / name))
        assert (len(data.train), len(data.test), data.classes) == (48, 12, 3)


def test_a_given_split_is_kept(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=Y, x_test=X[:7], y_test=Y[:7])
    data = load_data(str(tmp_path / "a.npz"))
    assert torch.equal(data.test.inputs[0], X[:7])
    assert len(data.train) == 60


@pytest.mark.parametrize(
    ("text", "advice"),
    [("nothing-here", "digits"), ("missing.npz", "whole")],
)
def test_what_is_not_there_is_refused_with_advice(text: str, advice: str) -> None:
    with pytest.raises((UsageError, LoadError), match=advice):
        load_data(text)


def test_an_archive_without_targets_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X)
    with pytest.raises(LoadError, match="x and y"):
        load_data(str(tmp_path / "a.npz"))


def test_an_archive_with_pickles_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    with pytest.raises(LoadError, match="cannot read"):
        load_data(str(tmp_path / "a.npz"))


def test_objects_a_factory_may_give() -> None:
    whole = TensorDataset(X, Y)
    for made in (
        (X, Y),
        {"x": X, "y": Y},
        whole,
        DataLoader(whole, batch_size=7),
        [(x, int(y)) for x, y in zip(X, Y, strict=True)],
    ):
        data = load_data(made)
        assert len(data.train) + len(data.test) == 60
        assert data.classes == 3
    both = load_data((DataLoader(whole, batch_size=8), TensorDataset(X[:9], Y[:9])))
    assert (len(both.train), len(both.test)) == (60, 9)
    parts = load_data(random_split(whole, [40, 20]))
    assert (len(parts.train), len(parts.test)) == (40, 20)
    two_examples = load_data([(X[0], 0), (X[1], 1)] * 10)
    assert len(two_examples.train) + len(two_examples.test) == 20


class Dicts(Dataset):
    """Items are dicts, as many data sets give them."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return dict(zip(self.keys, (X[row], Y[row], X[row] + 1), strict=False))


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return zip(X, Y, strict=True)


@pytest.mark.parametrize("keys", [("x", "y"), ("pixels", "label")])
def test_items_may_be_dicts(keys: tuple[str, str]) -> None:
    for made in (Dicts(*keys), DataLoader(Dicts(*keys), batch_size=7)):
        data = load_data(made)
        assert sorted(data.train.targets.tolist() + data.test.targets.tolist()) == sorted(Y.tolist())
        rows = {tuple(r) for r in torch.cat([data.train.inputs[0], data.test.inputs[0]]).tolist()}
        assert rows == {tuple(r) for r in X.tolist()}


def test_what_a_dict_holds_besides_the_target_is_input() -> None:
    data = load_data(Dicts("a", "target", "b"))
    assert torch.equal(data.train.inputs[1], data.train.inputs[0] + 1)
    with pytest.raises(LoadError, match="a, answer"):
        load_data(Dicts("a", "answer"))


def test_streams_are_read_to_their_end() -> None:
    for made in (Stream(), DataLoader(Stream(), batch_size=8)):
        data = load_data(made)
        assert (len(data.train), len(data.test)) == (48, 12)


def test_a_factory_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def made(n=40):\n"
        "    x = torch.linspace(-1, 1, n)[:, None]\n"
        "    return x, (3 * x).sin()\n"
        "def broken():\n"
        "    raise ValueError('no disk')\n"
    )
    data = load_data(f"{tmp_path / 'mine.py'}:made(n=50)")
    assert data.task == REGRESSION
    assert len(data.train) == 40
    with pytest.raises(LoadError, match="no disk"):
        load_data(f"{tmp_path / 'mine.py'}:broken")


def test_a_folder_of_images(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for k in range(15):
            pixels = generator.integers(100 * label, 100 * label + 100, (12, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{k}.png")
    data = load_data(str(tmp_path), image_size=(8, 8))
    assert data.train.inputs[0].shape[1:] == (3, 8, 8)
    assert data.classes == 2
    (tmp_path / "cat" / "0.png").write_bytes(b"not an image")
    with pytest.raises(LoadError, match="cannot read the image"):
        load_data(str(tmp_path))


def test_class_sorted_rows() -> None:
    assert class_sorted(torch.tensor([2, 0, 1, 0])).tolist() == [1, 3, 2, 0]
