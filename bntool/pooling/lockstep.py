"""All batches go through the model side by side and wait at every norm until the last one has arrived.

So one forward pass over the data settles all norms exactly, each on inputs that the norms before it have
already been settled for. Every batch runs on a thread of its own, but only one of them at any time: they
are coroutines that any model's code can be run in, whatever its control flow and the shapes of its batches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bntool.pooling.batches import Call
from bntool.pooling.rounds import Book, Brought, Outcome, watched

MOST = 512
"""Batches that may go side by side: each costs a thread."""


def side_by_side(work: Sequence[Call], book: Book) -> Outcome:
    """Settle all norms the data reaches; norms called more than once a batch take one more pass each."""
    outcome = Outcome("lockstep", settled=book.settled)
    repeated = {norm for norm, count in book.trails.counts.items() if count > 1}
    while book.pending:
        outcome.forwards += 1
        if not _Pass(work, book, repeated).run():
            break  # the data does not reach what is left
    return outcome


class _Abandoned(BaseException):
    """Ends a batch's thread from inside."""


class _Lane:
    """One batch on its thread: runs when told to, stops at every norm that is not settled."""

    def __init__(self, run: Callable[[], None]) -> None:
        self.at: nn.Module | None = None
        self.brought: Brought | None = None
        self.done = self.abandoned = False
        self.error: BaseException | None = None
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._run = run
        self.thread = threading.Thread(target=self._main, daemon=True)
        self.thread.start()

    def step(self) -> None:
        """Let the batch run to its next stop."""
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
        self.done = True
        self._stopped.release()

    def _wait(self) -> None:
        self._go.acquire()
        if self.abandoned:
            raise _Abandoned


class _Pass:
    """One pass of all batches. Ends early when a settled norm is called again: it then counts as repeated."""

    def __init__(self, work: Sequence[Call], book: Book, repeated: set[nn.Module]) -> None:
        self.book, self.repeated = book, repeated
        self.settled_here: list[nn.Module] = []
        self.open: nn.Module | None = None
        self.collected: list[Brought] = []
        self.late: nn.Module | None = None
        self.current = 0
        context = _context_of(next(book.trails.model.parameters(), None))
        self.lanes = [_Lane(self._runner(call, context)) for call in work]

    def _runner(self, call: Call, context: Callable[[], Iterator[None]]) -> Callable[[], None]:
        def run() -> None:
            with contextmanager(context)():
                call.run(self.book.trails.model)

        return run

    def run(self) -> bool:
        """Whether anything was settled, or is known better now."""
        try:
            with watched(self.book.names, self._arrive):
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
        """Runs in the thread of the current lane, while the norm's input is still in the cache."""
        if self.open is not None:
            if norm is self.open:
                self.collected.append(self.book.read(norm, value, self.current))
        elif norm in self.book.pending:
            self.lanes[self.current].stop(norm, self.book.read(norm, value, self.current))
        elif norm in self.settled_here:
            self.late = norm
            raise _Abandoned

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
