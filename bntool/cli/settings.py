"""Where an option comes from without its flag: the environment, the project's settings, then the default.

The environment names an option BNTOOL_FOLD_FORM, or BNTOOL_FORM for every command that has it; settings say
`form = "graph"` under [tool.bntool.fold] or [tool.bntool].
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from bntool import config
from bntool.errors import UsageError

#: what a file in the folder one happens to stand in must not decide
NEVER_FROM_A_FILE = frozenset({"trust", "force", "output", "help", "version", "debug"})

#: command -> option name as it is written -> parameter name and whether it takes several values
Options = Mapping[str, Mapping[str, tuple[str, bool]]]


def options_of(commands: Mapping[str, Any]) -> Options:
    return {name: dict(_options(command.params)) for name, command in commands.items()}


def _options(params: Iterable[Any]) -> Iterable[tuple[str, tuple[str, bool]]]:
    for param in params:
        flags = [flag for flag in param.opts if flag.startswith("--")]
        for flag in flags:
            yield flag[2:], (param.name, bool(getattr(param, "multiple", False)))


def defaults(commands: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Command -> parameter -> value, from the environment and the project's settings.

    Raises: UsageError for a setting that no command has, LoadError for a file that cannot be read.
    """
    options = options_of(commands)
    found, path = config.read()
    check(found, options, str(path))
    return {name: _defaults(name, known, found) for name, known in options.items()}


def _defaults(
    command: str, known: Mapping[str, tuple[str, bool]], found: Mapping[str, Any]
) -> dict[str, Any]:
    own = found.get(command, {})
    values = {}
    for option, (parameter, several) in known.items():
        layers = [_environment(command, option), _setting(own, option), _setting(found, option)]
        value = next((v for v in layers if v is not None), None)
        if value is not None:
            values[parameter] = _as_list(value) if several else value
    return values


def _environment(command: str, option: str) -> str | None:
    tail = option.replace("-", "_").upper()
    return os.environ.get(f"BNTOOL_{command.upper()}_{tail}") or os.environ.get(f"BNTOOL_{tail}") or None


def _setting(table: Mapping[str, Any], option: str) -> Any:
    value = table.get(option, table.get(option.replace("-", "_")))
    return None if isinstance(value, dict) else value


def _as_list(value: Any) -> list[Any]:
    return value.split() if isinstance(value, str) else list(value)


def check(found: Mapping[str, Any], options: Options, where: str) -> None:
    """Raises: UsageError for a key that means nothing, or that a file must not decide."""
    every = {option for known in options.values() for option in known}
    _check_table({k: v for k, v in found.items() if k not in options}, every, where)
    for command, known in options.items():
        if isinstance(found.get(command), dict):
            _check_table(found[command], set(known), f"{where} [{command}]")


def _check_table(table: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in (k for k, value in table.items() if not isinstance(value, dict)):
        option = key.replace("_", "-")
        if option in NEVER_FROM_A_FILE:
            raise UsageError(
                f"{key} cannot be set in a file", where=where, next=f"Give --{option} when you mean it."
            )
        if option not in known:
            near = get_close_matches(option, known, n=1)
            advice = f"Did you mean {near[0]}?" if near else "See bntool --help for the options there are."
            raise UsageError(f"there is no setting {key!r}", where=where, next=advice)
