"""Settling norms in the order they run: each one's statistics before anything downstream of it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bntool.errors import RunError
from bntool.norms.moments import Moments, merged, moments
from bntool.pooling import ranks
from bntool.pooling.batches import Call, device_of
from bntool.progress import Progress

Norms = dict[str, _BatchNorm]
ONE_VALUE = "Give more data, or larger batches: a variance needs two values."
#: the moments of what one batch brought to a norm, with the batch's number
Brought = tuple[int, Moments]


@dataclass(frozen=True)
class Settled:
    """The pooled moments of all that a norm read."""

    moments: Moments
    note: str = ""


@dataclass
class Outcome:
    """What was settled, by which method, in how many forward passes over the data."""

    method: str
    forwards: int = 0
    settled: dict[nn.Module, Settled] = field(default_factory=dict)


class Trails:
    """In which order the norms are called, and how often, from calls that were run."""

    def __init__(self, model: nn.Module, norms: Norms) -> None:
        self.model = model
        self.names: dict[nn.Module, str] = {m: n for n, m in norms.items()}
        self.trails: list[list[nn.Module]] = []
        self.counts: Counter[nn.Module] = Counter()

    def probe(self, call: Call) -> tuple[Call, Any]:
        """Learn the order from one sample, which costs little; from the batch where one does not do.

        Returns: what was run, and the outputs.
        """
        try:
            sample = call.first_sample()
            return sample, self.follow(sample)
        except RunError:
            return call, self.follow(call)

    def follow(self, call: Call) -> Any:
        """Returns: the outputs."""
        found: list[nn.Module] = []
        with watched(self.names, lambda norm, _: found.append(norm)):
            outputs = call.run(self.model)
        self.counts |= Counter(found)
        if found not in self.trails:
            self.trails.append(found)
        return outputs

    def share(self) -> None:
        """From here on every process knows the ways that the data of all processes go."""
        norms = {name: norm for norm, name in self.names.items()}
        own = [[self.names[norm] for norm in trail] for trail in self.trails]
        theirs = [[norms[name] for name in trail] for trails in ranks.objects_of(own) for trail in trails]
        self.trails = [trail for place, trail in enumerate(theirs) if trail not in theirs[:place]]

    def next_of(self, pending: Iterable[nn.Module]) -> nn.Module | None:
        """A pending norm that no other pending norm runs before, in any trail; the first one in a loop."""
        wanted = set(pending)
        ordered = [list(dict.fromkeys(m for m in t if m in wanted)) for t in self.trails]
        late = {m for t in ordered for m in t[1:]}
        first = [t[0] for t in ordered if t]
        return next((m for m in first if m not in late), first[0] if first else None)


class Book:
    """The norms still to settle, and the writing down of those that are."""

    def __init__(self, norms: Norms, batches: int, trails: Trails, progress: Progress) -> None:
        self.pending: dict[nn.Module, None] = dict.fromkeys(norms.values())
        self.names = trails.names
        self.trails, self.batches, self.progress, self.total = trails, batches, progress, len(norms)
        self.settled: dict[nn.Module, Settled] = {}
        self.spoilt = ""
        """The first batch of this process with values that are not finite."""

    def read(self, norm: nn.Module, value: Tensor, batch: int) -> Brought:
        """The moments of a norm's input.

        Raises: RunError naming norm and batch when they are not finite, or not the norm's channels.
        """
        self._refuse_other_channels(norm, value, batch)
        found = moments(value)
        if not found.finite:
            self.spoilt = self.spoilt or f"batch {batch}"
            if not ranks.several():
                self._refuse(norm)
        return batch, found

    def _refuse_other_channels(self, norm: nn.Module, value: Tensor, batch: int) -> None:
        assert isinstance(norm, _BatchNorm)
        channels = value.shape[1] if value.dim() > 1 else 0
        if channels != norm.num_features:
            raise RunError(
                f"batch {batch} has {channels} channels where it reaches this norm of {norm.num_features}",
                where=self.names[norm],
                next="Give batches of the shape the model expects. Nothing was changed.",
            )

    def _refuse(self, norm: nn.Module) -> None:
        raise RunError(
            f"{self.spoilt or 'a batch of another process'} is NaN or inf where it reaches this norm",
            where=self.names[norm],
            next="Take that batch out, or look for what blows up before this layer. Nothing was changed.",
        )

    def close(self, norm: nn.Module, brought: Sequence[Brought]) -> None:
        """Set the norm's running statistics to the pooled ones of all that was brought, on all ranks."""
        assert isinstance(norm, _BatchNorm)
        if ranks.several() and not ranks.smallest(int(not self.spoilt), norm.running_mean.device):  # type: ignore[union-attr]
            self._refuse(norm)  # on every rank, so that none waits for another
        together = ranks.pooled(merged(found for _, found in brought) if brought else _nothing(norm))
        if together.count < 2:
            raise RunError("one value per channel in all the data", where=self.names[norm], next=ONE_VALUE)
        calls = max(Counter(batch for batch, _ in brought).values(), default=0)
        note = f"called {calls} times a batch: pooled over the calls" if calls > 1 else ""
        self.settled[norm] = Settled(together, note)
        _store(norm, together, self.batches)
        self.pending.pop(norm)
        self.progress("calibrate", len(self.settled), self.total)

    def reopen(self, norms: Iterable[nn.Module]) -> None:
        """Take back what was settled too early."""
        for norm in norms:
            self.settled.pop(norm, None)
            self.pending[norm] = None


def _nothing(norm: _BatchNorm) -> Moments:
    """What a process brings whose data do not reach the norm."""
    assert norm.running_mean is not None
    zeros = norm.running_mean.new_zeros(norm.num_features).double()
    return Moments(0, zeros, zeros)


def one_pass_each(work: Sequence[Call], book: Book) -> Outcome:
    """One pass over the data per norm, which ends as soon as the batch has been through that norm."""
    outcome = Outcome("passes", settled=book.settled)
    while (norm := book.trails.next_of(book.pending)) is not None:
        brought = [part for index, call in enumerate(work) for part in _inputs_of(norm, call, index, book)]
        outcome.forwards += 1
        if ranks.total(len(brought), device_of(book.trails.model)):
            book.close(norm, brought)
        else:
            book.pending.pop(norm)
    return outcome


class _Enough(BaseException):
    """The norm of this pass has seen all of the batch: the rest of the model need not run."""


def _inputs_of(norm: nn.Module, call: Call, index: int, book: Book) -> list[Brought]:
    found: list[Brought] = []

    def arrive(_: nn.Module, value: Tensor) -> None:
        found.append(book.read(norm, value, index))
        if len(found) == book.trails.counts[norm]:
            raise _Enough

    with watched([norm], arrive), suppress(_Enough):
        call.run(book.trails.model)
    return found


def _store(norm: _BatchNorm, moments: Moments, batches: int) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(moments.mean)
    norm.running_var.copy_(moments.variance())
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.fill_(batches)


@contextmanager
def watched(norms: Iterable[nn.Module], arrive: Callable[[nn.Module, Tensor], None]) -> Iterator[None]:
    """Call `arrive(norm, its input)` whenever one of `norms` is about to run."""

    def look(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arrive(norm, args[0] if args else next(iter(kwargs.values())))

    handles = [norm.register_forward_pre_hook(look, with_kwargs=True) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
