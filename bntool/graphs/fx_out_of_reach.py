"""What a part that is not looked into keeps for its next call: code around it that reads it is not traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import nn


@contextmanager
def out_of_reach(
    kept: Mapping[nn.Module, frozenset[str]], refusal: Callable[[str], Exception]
) -> Iterator[None]:
    """Meanwhile reading or writing one of these attributes of a module raises what `refusal` makes of it.

    (That goes for all modules of the class: what the class defines comes before what an instance holds.)
    """

    def refuse(*_: object) -> None:
        raise refusal("it reads or writes what a part of it keeps for the next call")

    with ExitStack() as stack:
        for cls, name in {(type(module), name) for module, names in kept.items() for name in names}:
            stack.callback(_put_back, cls, name, name in vars(cls), vars(cls).get(name))
            setattr(cls, name, property(refuse, refuse, refuse))
        yield


def _put_back(cls: type, name: str, was_there: bool, value: object) -> None:
    if was_there:
        setattr(cls, name, value)
    else:
        delattr(cls, name)
