"""Tests write files of the same names in different folders: what each imported is forgotten after it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def forget_imports() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in [n for n in set(sys.modules) - before if n.partition(".")[0] in ("nets", "parts", "helper")]:
        del sys.modules[name]
