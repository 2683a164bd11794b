"""The one thread that owns the model: takes turns and runs what they name.

Knows threads, turns and failures; does not know what a job computes.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import structlog

from executor_service.engine.failures import as_service_error, is_fatal
from executor_service.engine.outbox import Outbox
from executor_service.engine.scheduler import Drop, Lane, Progress, Scheduler, Ticket
from executor_service.errors import deadline_passed, engine_stopped
from service_chassis.errors import ServiceError
from service_chassis.logging import describe_exception

Result = TypeVar("Result")
Kind = TypeVar("Kind")
_STOP_S = 5.0
_log = structlog.get_logger()


# How a part of a job ended: what follows, or why nothing does.
Outcome = Progress | Exception


class Job(Protocol):
    """What a ticket carries. The worker thread calls `part` and `step`, for jobs of one class.

    Both return an outcome for each job. If they raise, nobody has got anything yet, and each job is
    run again by itself: what fails, fails alone.

    Attributes:
        slot: Set before each part; see `Ticket`.
    """

    slot: int | None

    @staticmethod
    def part(jobs: Sequence[Any]) -> Sequence[Outcome]:
        """Run the next part of each."""

    @staticmethod
    def step(jobs: Sequence[Any]) -> Sequence[Outcome]:
        """Run one step of each, together."""

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
        self._scheduler.ready(self._scheduler.admit(job, Lane.CALL))
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
        if turn.step:
            self._advance(turn.step, turn.step[0].work.step)
        if turn.part:
            self._advance(turn.part, turn.part[0].work.part)
        if turn.idle:
            self._scheduler.wait()

    def _advance(
        self, tickets: Sequence[Ticket[Job]], run: Callable[[Sequence[Job]], Sequence[Outcome]]
    ) -> None:
        """Run a part of some jobs; a failure ends its own job only."""
        for ticket in tickets:
            ticket.work.slot = ticket.slot
        outcomes = together_or_apart([ticket.work for ticket in tickets], run)
        for ticket, outcome in zip(tickets, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._fail(ticket.work, outcome)
                outcome = Progress.OVER
            self._scheduler.report(ticket, outcome)
        fatal = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        for error in filter(is_fatal, fatal):
            raise error

    def _fail(self, job: Job, error: Exception) -> None:
        refusal = as_service_error(error)
        job.fail(refusal)
        if refusal is not error:
            _log.error("a request failed", fault=describe_exception(error))

    def _fail_all(self) -> None:
        for ticket in self._scheduler.close():
            ticket.work.fail(engine_stopped())


def together_or_apart(
    jobs: Sequence[Kind], run: Callable[[Sequence[Kind]], Sequence[Outcome]]
) -> Sequence[Outcome]:
    """Outcomes of jobs that are run together, or one by one where that fails."""
    try:
        return run(jobs)
    except Exception as error:
        if len(jobs) == 1 or is_fatal(error):
            return [error] * len(jobs)
        return [outcome for job in jobs for outcome in together_or_apart([job], run)]


class _Call(Generic[Result]):
    """A function as a job of one part; what it raises goes to its caller as it is."""

    slot: int | None = None

    def __init__(self, function: Callable[[], Result], outbox: Outbox[Result]) -> None:
        self._function = function
        self.outbox = outbox

    @staticmethod
    def part(jobs: Sequence[_Call[Any]]) -> Sequence[Outcome]:
        [job] = jobs
        try:
            job.outbox.put(job._function())
        except Exception as error:
            job.outbox.fail(error)
            if is_fatal(error):
                raise
        return [Progress.OVER]

    @staticmethod
    def step(jobs: Sequence[_Call[Any]]) -> Sequence[Outcome]:
        return [Progress.OVER] * len(jobs)

    def fail(self, error: ServiceError) -> None:
        self.outbox.fail(error)
