"""Tests write files of the same names in different folders: what each imported is forgotten after it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent

OURS = ("nets", "parts", "helper")


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def forget_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Before each test too: a name that is taken makes a file's module another name, which pickles keep.

    So does a name that could be imported: pytest makes the other folders of tests importable.
    """
    forget()
    outside = [
        place for place in sys.path if TESTS not in (Path(place).resolve(), *Path(place).resolve().parents)
    ]
    monkeypatch.setattr(sys, "path", outside)
    yield
    forget()
