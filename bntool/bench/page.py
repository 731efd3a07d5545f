"""placeholder"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def bench_page(document: Mapping[str, Any], past: Sequence[Mapping[str, Any]]) -> str:
    return ""
