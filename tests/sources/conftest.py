"""Tests write files of the same names in different folders: what each imported is forgotten after it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

OURS = ("nets", "parts", "helper")


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def forget_imports() -> Iterator[None]:
    """Before each test too: a name that is taken makes a file's module another name, which pickles keep."""
    forget()
    yield
    forget()
