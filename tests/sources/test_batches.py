"""Data on the command line: what is input in a file, how it is cut, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bntool.errors import LoadError, UsageError
from bntool.sources.batches import read_batches

X = torch.arange(30.0).reshape(10, 3)


def joined(ref: Path | str, batch_size: int = 4) -> Any:
    batches = list(read_batches(str(ref), batch_size=batch_size))
    assert [len(b) for b in batches] == [4, 4, 2]
    return torch.cat(batches)


def test_archives_give_their_inputs_in_order(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    np.savez(tmp_path / "b.npz", x=X, y=np.arange(10))
    np.savez(tmp_path / "c.npz", images=X, y=np.arange(10))
    save_file({"x": X}, tmp_path / "d.safetensors")
    for name in ("a.npy", "b.npz", "c.npz", "d.safetensors"):
        assert torch.equal(joined(tmp_path / name), X)


def test_several_inputs_are_a_dict(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", left=X, right=2 * X)
    first = next(iter(read_batches(str(tmp_path / "a.npz"), batch_size=4)))
    assert torch.equal(first["right"], 2 * X[:4])


def test_a_factory_gives_rows_or_batches(tmp_path: Path) -> None:
    code = "import torch\ndef rows(n=10): return torch.arange(3.0 * n).reshape(n, 3)\n"
    code += "def loader(): return [(torch.ones(2, 3), torch.zeros(2))] * 3\n"
    (tmp_path / "mydata.py").write_text(code)
    assert torch.equal(joined(f"{tmp_path}/mydata.py:rows"), X)
    assert len(list(read_batches(f"{tmp_path}/mydata.py:loader"))) == 3


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.npz", b"noise", LoadError),
        ("a.npy", b"", LoadError),
        ("a.csv", b"1,2", UsageError),
        ("b.py:missing", b"", LoadError),
        ("none.npy", None, LoadError),
    ],
)
def test_what_cannot_be_read_is_said(
    tmp_path: Path, name: str, content: bytes | None, problem: type[Exception]
) -> None:
    if content is not None:
        (tmp_path / name.partition(":")[0]).write_bytes(content)
    with pytest.raises(problem):
        list(read_batches(str(tmp_path / name)))


def test_pickled_arrays_are_not_run(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(LoadError):
        list(read_batches(str(tmp_path / "a.npy")))
