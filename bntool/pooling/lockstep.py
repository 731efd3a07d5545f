"""All batches go through the model side by side and wait at every norm until the last one has arrived.

So one forward pass over the data settles all norms exactly, each on inputs that the norms before it have
already been settled for. The batches of a model that torch.fx follows are taken along its graph in turns.
Of any other model every batch runs on a thread of its own, but only one of them at any time: they are
coroutines that any code can be run in, whatever its control flow. (torch keeps a team of processors for every
thread that computes, and what one has in its cache is not in the next one's: where it can be, the graph is
used.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from bntool.errors import BntoolError
from bntool.pooling.batches import Call
from bntool.pooling.rounds import Book, Brought, Outcome, watched
from bntool.pooling.route import Route

MOST = 512
"""Batches that may go side by side: each costs a thread."""


def side_by_side(work: Sequence[Call], book: Book, route: Route | None = None) -> Outcome:
    """Settle all norms the data reaches; norms called more than once a batch take one more pass each.

    Without a `route` each batch is a thread.
    """
    outcome = Outcome("lockstep", settled=book.settled)
    repeated = {norm for norm, count in book.trails.counts.items() if count > 1}
    while book.pending:
        outcome.forwards += 1
        this = _Pass(work, book, repeated, route)
        try:
            if not this.run():
                break  # the data does not reach what is left
        except Exception as problem:
            if route is None or isinstance(problem, BntoolError):
                raise
            book.reopen(this.settled_here)
            route = None  # a batch that the graph does not suit: the model's own code knows
    return outcome


class _Abandoned(BaseException):
    """Ends a batch from inside."""


class _Lane(Protocol):
    """One batch: runs when told to, stops at every norm that is not settled."""

    at: nn.Module | None
    """The norm it waits at, if it is not done."""
    brought: Brought | None

    def step(self) -> None:
        """Let the batch run to its next stop."""

    def abandon(self) -> None:
        """Let it run no further."""


class _Walker:
    """A batch that is taken along the graph."""

    def __init__(self, route: Route, call: Call, ask: Callable[[nn.Module, Tensor], Brought | None]) -> None:
        self.at: nn.Module | None = None
        self.brought: Brought | None = None
        self._walk = route.walk(call, ask)

    def step(self) -> None:
        try:
            self.at, self.brought = next(self._walk)
        except (StopIteration, _Abandoned):
            self.at = self.brought = None

    def abandon(self) -> None:
        self._walk.close()  # type: ignore[attr-defined]


class _Thread:
    """A batch on a thread of its own."""

    def __init__(self, run: Callable[[], None]) -> None:
        self.at: nn.Module | None = None
        self.brought: Brought | None = None
        self.abandoned = False
        self.error: BaseException | None = None
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._run = run
        self.thread = threading.Thread(target=self._main, daemon=True)
        self.thread.start()

    def step(self) -> None:
        self.at = self.brought = None
        self._go.release()
        self._stopped.acquire()
        if self.error is not None:
            raise self.error

    def stop(self, norm: nn.Module, brought: Brought) -> None:
        """From inside the batch: wait until told to go on."""
        self.at, self.brought = norm, brought
        self._stopped.release()
        self._wait()

    def abandon(self) -> None:
        self.abandoned = True
        self._go.release()
        self.thread.join()

    def _main(self) -> None:
        try:
            self._wait()
            self._run()
        except _Abandoned:
            pass
        except BaseException as problem:
            self.error = problem
        self._stopped.release()

    def _wait(self) -> None:
        self._go.acquire()
        if self.abandoned:
            raise _Abandoned


class _Pass:
    """One pass of all batches. Ends early when a settled norm is called again: it then counts as repeated."""

    def __init__(
        self, work: Sequence[Call], book: Book, repeated: set[nn.Module], route: Route | None
    ) -> None:
        self.book, self.repeated, self.route = book, repeated, route
        self.settled_here: list[nn.Module] = []
        self.open: nn.Module | None = None
        self.collected: list[Brought] = []
        self.late: nn.Module | None = None
        self.current = 0
        self.lanes: list[_Lane] = [self._lane(call) for call in work]

    def _lane(self, call: Call) -> _Lane:
        if self.route is not None:
            return _Walker(self.route, call, self._ask)
        context = _context_of(next(self.book.trails.model.parameters(), None))
        return _Thread(self._runner(call, context))

    def _runner(self, call: Call, context: Callable[[], Iterator[None]]) -> Callable[[], None]:
        def run() -> None:
            with contextmanager(context)():
                call.run(self.book.trails.model)

        return run

    def run(self) -> bool:
        """Whether anything was settled, or is known better now."""
        try:
            with nullcontext() if self.route is not None else watched(self.book.names, self._arrive):
                self._step(range(len(self.lanes)))
                while self.late is None and self.open is None and (norm := self._next()) is not None:
                    self._settle(norm)
        finally:
            for lane in self.lanes:
                lane.abandon()
        if self.open is not None and self.late is None:
            self.book.close(self.open, self.collected)
        return bool(self.settled_here or self.open or self.late)

    def _step(self, indices: Sequence[int]) -> None:
        for self.current in indices:
            self.lanes[self.current].step()
            if self.late is not None:
                self._take_back(self.late)
                return

    def _next(self) -> nn.Module | None:
        """The norm to settle now: one that is not repeated if there is any, the earliest."""
        waiting = [lane.at for lane in self.lanes if lane.at is not None]
        once = [norm for norm in waiting if norm not in self.repeated]
        known = self.book.trails.next_of(once or waiting)
        return known or next((n for n in self.book.pending if n in (once or waiting)), None)

    def _settle(self, norm: nn.Module) -> None:
        there = [index for index, lane in enumerate(self.lanes) if lane.at is norm]
        if norm in self.repeated:
            self.open = norm  # from here on all batches run to the end
            self.collected = self._brought(there)
            self._step([index for index, lane in enumerate(self.lanes) if lane.at is not None])
            return
        self.book.close(norm, self._brought(there))
        self.settled_here.append(norm)
        self._step(there)

    def _brought(self, indices: Sequence[int]) -> list[Brought]:
        return [found for index in indices if (found := self.lanes[index].brought) is not None]

    def _arrive(self, norm: nn.Module, value: Tensor) -> None:
        """Runs in the thread of the current lane."""
        answer = self._ask(norm, value)
        if answer is not None:
            lane = self.lanes[self.current]
            assert isinstance(lane, _Thread)
            lane.stop(norm, answer)

    def _ask(self, norm: nn.Module, value: Tensor) -> Brought | None:
        """What the current lane brings to a norm that waits for it, while that is still in the cache."""
        if self.open is not None:
            if norm is self.open:
                self.collected.append(self.book.read(norm, value, self.current))
        elif norm in self.book.pending:
            return self.book.read(norm, value, self.current)
        elif norm in self.settled_here:
            self.late = norm
            raise _Abandoned
        return None

    def _take_back(self, norm: nn.Module) -> None:
        """The norm is called again after it was settled: it and all settled since are open again."""
        self.repeated.add(norm)
        self.book.reopen(self.settled_here[self.settled_here.index(norm) :])


def _context_of(parameter: Tensor | None) -> Callable[[], Iterator[None]]:
    """What is local to a thread in torch and must be as in the caller's: gradients off, autocast."""
    kind = parameter.device.type if parameter is not None else "cpu"
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def context() -> Iterator[None]:
        with torch.no_grad(), torch.autocast(kind, dtype=dtype, enabled=enabled):
            yield

    return context
