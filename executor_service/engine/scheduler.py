"""Who runs next: a bounded queue, deadlines, cancellation, slots, and turns among requests.

Knows tickets, slots and time; does not know models, tensors, experts or the network.

A request is a ticket. It is admitted or refused at once, waits (its input is being prepared beside
the queue), and is then run in parts. In each turn all answers that are being decoded take one step
together, and beside that one part of something else runs: a chunk of one prompt, or the features of
several. So no answer waits longer for its next token than one such part takes. One thread takes
turns; any thread may do the rest.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from executor_service.errors import (
    deadline_passed,
    deadline_too_short,
    engine_stopped,
    queue_full,
)

Work = TypeVar("Work")

_MIN_RETRY_S = 0.05
_MAX_RETRY_S = 30.0
# A client may send a deadline of millennia, which no lock can wait for.
_LONGEST_WAIT_S = 3600.0
# Weight of the newest request in the running mean of run times.
_NEWEST = 0.2


class Lane(enum.Enum):
    """What a request needs to run."""

    CALL = enum.auto()
    """The server's own work: goes before all others, alone, and is never refused for length."""
    FEATURES = enum.auto()
    """One part and no slot; several run together."""
    SEQUENCE = enum.auto()
    """A slot: prefilled alone, in parts, then perhaps stepped together with all others."""


class Progress(enum.Enum):
    """What a part says when it ends."""

    MORE = enum.auto()
    """Another part has to run alone."""
    STEPS = enum.auto()
    """From now on it is stepped."""
    OVER = enum.auto()
    """That was all."""


class State(enum.Enum):
    """Where a ticket is."""

    PREPARING = enum.auto()
    WAITING = enum.auto()
    STARTED = enum.auto()
    STEPPING = enum.auto()
    OVER = enum.auto()


class Drop(enum.Enum):
    """Why a ticket ended without being finished."""

    CANCELLED = enum.auto()
    EXPIRED = enum.auto()


class Ticket(Generic[Work]):
    """A request's place. Only the scheduler changes it.

    Attributes:
        work: What the worker runs.
        state: Where the ticket is.
        slot: What it holds while it runs; None outside of `Lane.SEQUENCE`.
    """

    def __init__(self, work: Work, lane: Lane, deadline_s: float | None) -> None:
        self.work = work
        self.state = State.PREPARING
        self.slot: int | None = None
        self._lane = lane
        self._deadline_s = deadline_s
        self._cancelled = False
        self._started_s = 0.0


@dataclass(frozen=True)
class Turn(Generic[Work]):
    """What the worker does next, in this order.

    Attributes:
        dropped: Tickets that are over; nothing more of them may run.
        step: Tickets that take one step together, oldest first.
        part: Tickets whose next part runs: one, or several of `Lane.FEATURES` together.
    """

    dropped: tuple[tuple[Ticket[Work], Drop], ...]
    step: tuple[Ticket[Work], ...]
    part: tuple[Ticket[Work], ...]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.dropped or self.step or self.part)


class Scheduler(Generic[Work]):
    """Decides admission and order.

    Args:
        queue_length: Tickets that may wait (or prepare) at once, the server's own not counted.
        slots: Tickets of `Lane.SEQUENCE` that may run at once.
        features_batch: Tickets of `Lane.FEATURES` that run together at most.
        clock: Monotonic time in seconds; deadlines are on it.
    """

    def __init__(
        self,
        *,
        queue_length: int,
        slots: int,
        features_batch: int = 8,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue_length = queue_length
        self._slots = slots
        self._features_batch = features_batch
        self._clock = clock
        self._changed = threading.Condition()
        self._queue: list[Ticket[Work]] = []
        self._running: list[Ticket[Work]] = []
        self._mean_run_s = 0.0
        self._mean_sequence_s = 0.0
        self._features_last = False
        self._closed = False

    @property
    def waiting(self) -> int:
        """Tickets in the queue."""
        with self._changed:
            return len(self._queue)

    @property
    def running(self) -> int:
        """Tickets that have started and are not over."""
        with self._changed:
            return len(self._running)

    def admit(self, work: Work, lane: Lane, *, deadline_s: float | None = None) -> Ticket[Work]:
        """Give a request a place in the queue; it stays there until `ready` is called.

        Args:
            work: What the worker will run.
            lane: What it needs.
            deadline_s: When it is worthless, on the scheduler's clock.

        Returns:
            The ticket.

        Raises:
            ResourceExhausted: The queue is full.
            DeadlineExceeded: The deadline has passed, or will have before those that wait are done.
            Unavailable: The scheduler is closed.
        """
        ticket = Ticket(work, lane, deadline_s)
        with self._changed:
            if self._closed:
                raise engine_stopped()
            if self._expired(ticket):
                raise deadline_passed()
            if lane is Lane.SEQUENCE and self._starts_too_late(ticket):
                raise deadline_too_short()
            if lane is not Lane.CALL and self._asked() >= self._queue_length:
                raise queue_full(self._retry_after_s(), self._queue_length)
            self._queue.append(ticket)
        return ticket

    def ready(self, ticket: Ticket[Work]) -> None:
        """Say that a ticket's input is prepared: it may start."""
        with self._changed:
            if ticket.state is State.PREPARING:
                ticket.state = State.WAITING
                self._changed.notify()

    def cancel(self, ticket: Ticket[Work]) -> None:
        """End a ticket: before its next part if it runs, at once if it waits, else no change."""
        with self._changed:
            if ticket.state is State.OVER:
                return
            ticket._cancelled = True
            if ticket in self._queue:
                # Frees the place now; the worker never sees the ticket.
                self._queue.remove(ticket)
                ticket.state = State.OVER
            else:
                self._changed.notify()

    def turn(self) -> Turn[Work]:
        """Take the next turn. For the one worker thread."""
        with self._changed:
            dropped = self._take_dropped()
            step = tuple(t for t in self._running if t.state is State.STEPPING)
            return Turn(dropped, step, self._take_part())

    def report(self, ticket: Ticket[Work], progress: Progress) -> None:
        """Say how a part or step of a ticket has ended; `OVER` frees its slot."""
        with self._changed:
            if ticket.state is State.OVER:
                return
            if progress is Progress.STEPS:
                ticket.state = State.STEPPING
            elif progress is Progress.OVER:
                self._end(ticket)
                ran_s = self._clock() - ticket._started_s
                self._mean_run_s += _NEWEST * (ran_s - self._mean_run_s)
                if ticket._lane is Lane.SEQUENCE:
                    self._mean_sequence_s += _NEWEST * (ran_s - self._mean_sequence_s)

    def wait(self) -> None:
        """Block until a turn would not be idle, or a deadline may have passed, or closing."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._pending(), timeout=self._until_deadline_s()
            )

    def close(self) -> list[Ticket[Work]]:
        """Refuse everything from now on.

        Returns:
            The tickets that were in the queue or running; all are over.
        """
        with self._changed:
            self._closed = True
            left = [*self._queue, *self._running]
            for ticket in left:
                ticket.state = State.OVER
            self._queue, self._running = [], []
            self._changed.notify_all()
            return left

    def _take_dropped(self) -> tuple[tuple[Ticket[Work], Drop], ...]:
        dropped = []
        for ticket in [*self._queue, *self._running]:
            if ticket._cancelled or self._expired(ticket):
                self._end(ticket)
                dropped.append((ticket, Drop.CANCELLED if ticket._cancelled else Drop.EXPIRED))
        return tuple(dropped)

    def _take_part(self) -> tuple[Ticket[Work], ...]:
        part = self._next_part()
        for ticket in part:
            if ticket.state is State.WAITING:
                self._start(ticket)
        if part:
            self._features_last = part[0]._lane is Lane.FEATURES
        return part

    def _next_part(self) -> tuple[Ticket[Work], ...]:
        """The server's own work, else features and a sequence by turns."""
        waiting = [ticket for ticket in self._queue if ticket.state is State.WAITING]
        calls = [ticket for ticket in waiting if ticket._lane is Lane.CALL]
        if calls:
            return (calls[0],)
        features = [ticket for ticket in waiting if ticket._lane is Lane.FEATURES]
        sequence = self._next_sequence(waiting)
        if features and not (sequence and self._features_last):
            return tuple(features[: self._features_batch])
        return sequence

    def _next_sequence(self, waiting: list[Ticket[Work]]) -> tuple[Ticket[Work], ...]:
        """The oldest that is being prefilled, else the one that has waited longest for a slot."""
        started = [t for t in self._running if t.state is State.STARTED and t.slot is not None]
        if started:
            return (started[0],)
        if len(self._taken()) == self._slots:
            return ()
        return tuple(ticket for ticket in waiting if ticket._lane is Lane.SEQUENCE)[:1]

    def _start(self, ticket: Ticket[Work]) -> None:
        if ticket._lane is Lane.SEQUENCE:
            # The lowest: a step runs over all slots between the lowest and the highest in use.
            ticket.slot = min(set(range(self._slots)) - self._taken())
        self._queue.remove(ticket)
        self._running.append(ticket)
        ticket.state = State.STARTED
        ticket._started_s = self._clock()

    def _taken(self) -> set[int]:
        return {ticket.slot for ticket in self._running if ticket.slot is not None}

    def _end(self, ticket: Ticket[Work]) -> None:
        (self._queue if ticket in self._queue else self._running).remove(ticket)
        ticket.state = State.OVER
        self._changed.notify()

    def _pending(self) -> bool:
        late = any(ticket._cancelled or self._expired(ticket) for ticket in self._queue)
        return bool(self._running) or late or bool(self._next_part())

    def _asked(self) -> int:
        return sum(ticket._lane is not Lane.CALL for ticket in self._queue)

    def _expired(self, ticket: Ticket[Work]) -> bool:
        return ticket._deadline_s is not None and self._clock() >= ticket._deadline_s

    def _starts_too_late(self, ticket: Ticket[Work]) -> bool:
        """By how long answers have taken of late; those that run are taken for done."""
        if ticket._deadline_s is None:
            return False
        ahead = sum(held._lane is Lane.SEQUENCE for held in self._queue)
        return self._clock() + ahead * self._mean_sequence_s / self._slots >= ticket._deadline_s

    def _until_deadline_s(self) -> float | None:
        deadlines = [t._deadline_s for t in self._queue if t._deadline_s is not None]
        if not deadlines:
            return None
        return min(max(0.0, min(deadlines) - self._clock()), _LONGEST_WAIT_S)

    def _retry_after_s(self) -> float:
        """A place is free once one more request has run."""
        return min(max(self._mean_run_s / self._slots, _MIN_RETRY_S), _MAX_RETRY_S)
