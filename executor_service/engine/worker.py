"""The one thread that owns the model: takes turns and runs what they name.

Knows threads, turns and failures; does not know what a job computes.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import structlog

from executor_service.engine.failures import as_service_error, is_fatal
from executor_service.engine.outbox import Outbox
from executor_service.engine.scheduler import Drop, Scheduler, Ticket
from executor_service.errors import deadline_passed, engine_stopped
from service_chassis.errors import ServiceError
from service_chassis.logging import describe_exception

Result = TypeVar("Result")
_STOP_S = 5.0
_log = structlog.get_logger()


class Job(Protocol):
    """What a ticket carries. The worker thread calls `start` and `step`."""

    def start(self) -> bool:
        """Run the first part; True when that was all."""

    def step(self) -> bool:
        """Run one more step; True when it was the last."""

    def fail(self, error: ServiceError) -> None:
        """Tell whoever waits; nothing of the job runs after this. From any thread."""


class Worker:
    """Owns the thread. Make it on the event loop; nobody else may touch the model.

    Args:
        scheduler: Where turns come from.
    """

    def __init__(self, scheduler: Scheduler[Job]) -> None:
        self._scheduler = scheduler
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="model-worker", daemon=True)
        self._thread.start()

    async def ended(self) -> None:
        """Return when the thread has ended, whether it was stopped or died."""
        await self._ended.wait()

    async def stop(self) -> None:
        """End the thread after its current part; whoever waits gets UNAVAILABLE.

        A part that goes on for long (a model is being loaded, say) is left to end on its own.
        """
        self._stopping = True
        self._fail_all()
        await asyncio.to_thread(self._thread.join, _STOP_S)

    async def call(self, function: Callable[[], Result]) -> Result:
        """Run a function on the worker thread, before all waiting requests.

        Raises:
            Unavailable: The worker has stopped.
            Exception: What the function raises.
        """
        job = _Call(function, Outbox())
        self._scheduler.ready(self._scheduler.admit(job, needs_slot=False, urgent=True))
        return await job.outbox.get()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._tick()
        except BaseException as error:
            _log.critical("the worker thread died", fault=describe_exception(error))
        finally:
            self._fail_all()
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._ended.set)

    def _tick(self) -> None:
        turn = self._scheduler.turn()
        for ticket, reason in turn.dropped:
            # Whoever cancelled has stopped listening.
            if reason is Drop.EXPIRED:
                ticket.work.fail(deadline_passed())
        if turn.start is not None:
            self._advance(turn.start, turn.start.work.start)
        for ticket in turn.step:
            self._advance(ticket, ticket.work.step)
        if turn.idle:
            self._scheduler.wait()

    def _advance(self, ticket: Ticket[Job], part: Callable[[], bool]) -> None:
        """Run one part of one job; its failure ends this job only."""
        try:
            over = part()
        except Exception as error:
            refusal = as_service_error(error)
            ticket.work.fail(refusal)
            if refusal is not error:
                _log.error("a request failed", fault=describe_exception(error))
            if is_fatal(error):
                raise
            over = True
        if over:
            self._scheduler.finish(ticket)

    def _fail_all(self) -> None:
        for ticket in self._scheduler.close():
            ticket.work.fail(engine_stopped())


class _Call(Generic[Result]):
    """A function as a job of one part; what it raises goes to its caller as it is."""

    def __init__(self, function: Callable[[], Result], outbox: Outbox[Result]) -> None:
        self._function = function
        self.outbox = outbox

    def start(self) -> bool:
        try:
            self.outbox.put(self._function())
        except Exception as error:
            self.outbox.fail(error)
            if is_fatal(error):
                raise
        return True

    def step(self) -> bool:
        return True

    def fail(self, error: ServiceError) -> None:
        self.outbox.fail(error)
