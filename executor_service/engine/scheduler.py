"""Who runs next: a bounded queue, deadlines, cancellation, and turns among running requests.

Knows tickets and time; does not know models, tensors, experts or the network.

A request is a ticket. It is admitted or refused at once, waits (its input is being prepared beside
the queue), runs its first part alone, and then, if it holds a slot, is stepped once per turn
together with all others until it is finished. One thread takes turns; any thread may do the rest.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from executor_service.errors import deadline_passed, engine_stopped, queue_full

Work = TypeVar("Work")

_MIN_RETRY_S = 0.05
_MAX_RETRY_S = 30.0
# A client may send a deadline of millennia, which no lock can wait for.
_LONGEST_WAIT_S = 3600.0
# Weight of the newest request in the running mean of run times.
_NEWEST = 0.2


class State(enum.Enum):
    """Where a ticket is."""

    PREPARING = enum.auto()
    WAITING = enum.auto()
    RUNNING = enum.auto()
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
    """

    def __init__(
        self, work: Work, *, needs_slot: bool, deadline_s: float | None, urgent: bool
    ) -> None:
        self.work = work
        self.state = State.PREPARING
        self._needs_slot = needs_slot
        self._deadline_s = deadline_s
        self._urgent = urgent
        self._cancelled = False
        self._started_s = 0.0


@dataclass(frozen=True)
class Turn(Generic[Work]):
    """What the worker does next, in this order.

    Attributes:
        dropped: Tickets that are over; nothing more of them may run.
        start: The ticket whose first part runs now, if any.
        step: Tickets that run one step each.
    """

    dropped: tuple[tuple[Ticket[Work], Drop], ...]
    start: Ticket[Work] | None
    step: tuple[Ticket[Work], ...]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.dropped and self.start is None and not self.step


class Scheduler(Generic[Work]):
    """Decides admission and order.

    Args:
        queue_length: Tickets that may wait (or prepare) at once, urgent ones not counted.
        slots: Tickets with `needs_slot` that may run at once.
        clock: Monotonic time in seconds; deadlines are on it.
    """

    def __init__(
        self, *, queue_length: int, slots: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._queue_length = queue_length
        self._slots = slots
        self._clock = clock
        self._changed = threading.Condition()
        self._queue: list[Ticket[Work]] = []
        self._running: list[Ticket[Work]] = []
        self._mean_run_s = 0.0
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

    def admit(
        self,
        work: Work,
        *,
        needs_slot: bool,
        deadline_s: float | None = None,
        urgent: bool = False,
    ) -> Ticket[Work]:
        """Give a request a place in the queue; it stays there until `ready` is called.

        Args:
            work: What the worker will run.
            needs_slot: Whether it runs step by step beside others.
            deadline_s: When it is worthless, on the scheduler's clock.
            urgent: Goes before all others and is never refused for length (the server's own work).

        Returns:
            The ticket.

        Raises:
            ResourceExhausted: The queue is full.
            DeadlineExceeded: The deadline has passed already.
            Unavailable: The scheduler is closed.
        """
        ticket = Ticket(work, needs_slot=needs_slot, deadline_s=deadline_s, urgent=urgent)
        with self._changed:
            if self._closed:
                raise engine_stopped()
            if self._expired(ticket):
                raise deadline_passed()
            if not urgent and len(self._queue) >= self._queue_length:
                raise queue_full(self._retry_after_s(), self._queue_length)
            self._queue.insert(0 if urgent else len(self._queue), ticket)
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
        """Take the next turn. For the one worker thread.

        Returns:
            Tickets to drop, at most one to start (the first that may), and those to step, oldest
            first. A started ticket is stepped from the next turn on.
        """
        with self._changed:
            dropped = self._take_dropped()
            step = tuple(self._running)
            return Turn(dropped, self._take_next(), step)

    def finish(self, ticket: Ticket[Work]) -> None:
        """Say that a started ticket is over; frees its slot."""
        with self._changed:
            if ticket.state is not State.RUNNING:
                return
            self._end(ticket)
            ran_s = self._clock() - ticket._started_s
            self._mean_run_s += _NEWEST * (ran_s - self._mean_run_s)

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

    def _take_next(self) -> Ticket[Work] | None:
        ticket = self._next()
        if ticket is None:
            return None
        self._queue.remove(ticket)
        self._running.append(ticket)
        ticket.state = State.RUNNING
        ticket._started_s = self._clock()
        return ticket

    def _next(self) -> Ticket[Work] | None:
        taken = sum(ticket._needs_slot for ticket in self._running)
        for ticket in self._queue:
            free = taken < self._slots or not ticket._needs_slot
            if ticket.state is State.WAITING and free:
                return ticket
        return None

    def _end(self, ticket: Ticket[Work]) -> None:
        (self._queue if ticket in self._queue else self._running).remove(ticket)
        ticket.state = State.OVER
        self._changed.notify()

    def _pending(self) -> bool:
        late = any(ticket._cancelled or self._expired(ticket) for ticket in self._queue)
        return bool(self._running) or late or self._next() is not None

    def _expired(self, ticket: Ticket[Work]) -> bool:
        return ticket._deadline_s is not None and self._clock() >= ticket._deadline_s

    def _until_deadline_s(self) -> float | None:
        deadlines = [t._deadline_s for t in self._queue if t._deadline_s is not None]
        if not deadlines:
            return None
        return min(max(0.0, min(deadlines) - self._clock()), _LONGEST_WAIT_S)

    def _retry_after_s(self) -> float:
        """A place is free once one more request has run."""
        return min(max(self._mean_run_s / self._slots, _MIN_RETRY_S), _MAX_RETRY_S)
