"""When a fold fails its verification: which norm is to blame? By bisection, for every kind of model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from glob import escape
from typing import TYPE_CHECKING, Any

from bntool.errors import RunError, VerificationError

if TYPE_CHECKING:  # an ONNX model is folded without importing torch
    from bntool.verify import Verification

#: globs of more norms to keep -> what the fold makes of the model then
Refold = Callable[[tuple[str, ...]], Any]


def first_wrong(names: Sequence[str], right: Callable[[tuple[str, ...]], bool]) -> str:
    """The first norm, in the order in which they fold, with which the outputs differ; "" if they do without.

    `right` says whether they agree when the norms that match the globs stay.
    """

    def good(count: int) -> bool:
        return right(tuple(escape(name) for name in names[count:]))

    if not good(0):
        return ""
    low, high = 0, len(names)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return names[high - 1]


def complaint_about(found: Verification, name: str, where: str) -> VerificationError:
    """What to raise when `name` is to blame, or none of the norms that fold in `where`."""
    if name:
        return VerificationError(found.complaint(), where=name, next=advice_to_keep(name))
    what = f"{found.complaint()}; so it is with every norm kept: does it depend on more than its inputs?"
    advice = "Nothing was written. Make the model give the same twice, or pass --no-verify (verify=False)."
    return VerificationError(what, where=where, next=advice)


def advice_to_keep(name: str) -> str:
    return f"Nothing was written. Leave it with --keep {name} (keep=[{name!r}])."


def checked(
    model: Any,
    folded: Any,
    inputs: Any,
    names: Sequence[str],
    refold: Refold,
    *,
    tolerance: float | None = None,
    where: str = "",
) -> Verification:
    """How far `folded` is from `model`; `names` are the norms that folded, in order.

    Raises: VerificationError that names the norm.
    """
    from bntool.verify import verify

    def runs(kept: tuple[str, ...]) -> bool:
        with suppress(RunError):
            verify(model, refold(kept), inputs, tolerance=tolerance)
            return True
        return False

    try:
        found = verify(model, folded, inputs, tolerance=tolerance)
    except RunError as problem:
        if not (name := first_wrong(names, runs)):  # with every norm kept it raises too
            raise
        what = f"without it {problem.what}"
        raise VerificationError(what, where=name, next=advice_to_keep(name)) from problem
    if found.ok:
        return found
    if found.drowned_in:
        advice = (
            "Nothing was written. Give the --tolerance that you can accept, or --no-verify (verify=False)."
        )
        raise VerificationError(found.complaint(), where=where, next=advice)
    allowed = found.tolerance
    name = first_wrong(names, lambda kept: verify(model, refold(kept), inputs, tolerance=allowed).ok)
    raise complaint_about(found, name, where)
