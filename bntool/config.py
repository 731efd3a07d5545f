"""The project's settings: `[tool.bntool]` in pyproject.toml, or the whole of bntool.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from bntool.errors import LoadError


def read(start: Path | None = None) -> tuple[dict[str, Any], Path | None]:
    """The settings that hold in `start` (the working folder), and the file they are from.

    The nearest folder upwards with a bntool.toml, or a pyproject.toml that has [tool.bntool], decides.
    Raises: LoadError when that file is not TOML.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        own = folder / "bntool.toml"
        if own.is_file():
            return parse(own), own
        shared = folder / "pyproject.toml"
        found = parse(shared).get("tool", {}).get("bntool") if shared.is_file() else None
        if isinstance(found, dict):
            return found, shared
    return {}, None


def parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise LoadError(f"cannot read it: {problem}", where=str(path), next="Correct it.") from problem
