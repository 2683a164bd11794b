"""The worker thread with jobs that are plain Python."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from executor_service.engine.outbox import Outbox
from executor_service.engine.scheduler import Lane, Progress, Scheduler
from executor_service.engine.worker import Worker, together_or_apart
from service_chassis.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    ServiceError,
    Unavailable,
)


class CountingJob:
    """Emits its name, `parts` times; `gate` holds every part back until it is set."""

    def __init__(self, name, parts, trace, gate=None, error=None):
        self.outbox: Outbox[str] = Outbox()
        self._left = parts
        self._name = name
        self._trace = trace
        self._gate = gate
        self._error = error

    slot = None

    @staticmethod
    def part(jobs):
        return [job._part() for job in jobs]

    step = part

    def fail(self, error: ServiceError) -> None:
        self.outbox.fail(error)

    def _part(self):
        if self._gate is not None:
            self._gate.wait(5)
        self._trace.append(self._name)
        if self._error is not None and self._left == 1:
            if isinstance(self._error, SystemExit):
                raise self._error
            return self._error
        self._left -= 1
        self.outbox.put(self._name)
        return Progress.STEPS if self._left else Progress.OVER


@pytest.fixture
def scheduler():
    return Scheduler(queue_length=8, slots=4)


@pytest.fixture
async def worker(scheduler):
    made = Worker(scheduler)
    yield made
    await made.stop()
    assert not worker_threads()


def post(scheduler, job, **options):
    ticket = scheduler.admit(job, Lane.SEQUENCE, **options)
    scheduler.ready(ticket)
    return ticket


async def has_started(scheduler):
    for _ in range(5000):
        if scheduler.running:
            return
        await asyncio.sleep(0.001)
    raise AssertionError("nothing started")


async def has_ended(scheduler):
    """The last part reaches its reader a moment before the worker lets go of the job."""
    for _ in range(5000):
        if not scheduler.running:
            return
        await asyncio.sleep(0.001)
    raise AssertionError("something still runs")


def worker_threads():
    return [thread for thread in threading.enumerate() if thread.name == "model-worker"]


async def take(job, count):
    return [await asyncio.wait_for(job.outbox.get(), 5) for _ in range(count)]


async def test_running_jobs_take_turns(scheduler, worker):
    trace, gate = [], threading.Event()
    jobs = [CountingJob(name, 6, trace, gate) for name in "abc"]
    for job in jobs:
        post(scheduler, job)
    gate.set()
    for job in jobs:
        await take(job, 6)
    # Once all three run, each has one step between two steps of another.
    middle = "".join(trace[4:-4])
    assert "aa" not in middle
    assert "bb" not in middle
    assert "cc" not in middle


async def test_a_failing_job_fails_alone_and_says_nothing_of_its_cause(scheduler, worker, capfd):
    trace = []
    bad = CountingJob("bad", 2, trace, error=ValueError("secret screen text"))
    good = CountingJob("good", 5, trace)
    post(scheduler, bad)
    post(scheduler, good)
    assert await take(bad, 1) == ["bad"]
    with pytest.raises(Internal) as failed:
        await take(bad, 1)
    assert "secret" not in str(failed.value)
    assert await take(good, 5) == ["good"] * 5
    assert worker_threads()
    await has_ended(scheduler)
    output = capfd.readouterr()
    assert "secret" not in output.out + output.err


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InvalidArgument("X", "x"), InvalidArgument),
        (MemoryError(), ResourceExhausted),
        (torch.OutOfMemoryError("CUDA out of memory"), ResourceExhausted),
        (RuntimeError("boom"), Internal),
    ],
)
async def test_what_a_failure_is_told_as(scheduler, worker, error, told):
    job = CountingJob("a", 1, [], error=error)
    post(scheduler, job)
    with pytest.raises(told):
        await take(job, 1)


async def test_a_cancelled_job_takes_no_further_step(scheduler, worker):
    trace, gate = [], threading.Event()
    job = CountingJob("a", 1000, trace, gate)
    ticket = post(scheduler, job)
    await has_started(scheduler)
    scheduler.cancel(ticket)  # During the first part, which the gate holds.
    gate.set()
    other = CountingJob("b", 1, trace)
    post(scheduler, other)
    await take(other, 1)
    assert trace == ["a", "b"]
    await has_ended(scheduler)


async def test_expired_in_the_queue_is_told_and_never_runs(scheduler, worker):
    import time

    trace, gate = [], threading.Event()
    blocker = CountingJob("blocker", 1, trace, gate)
    post(scheduler, blocker)
    await has_started(scheduler)
    late = CountingJob("late", 1, trace)
    post(scheduler, late, deadline_s=time.monotonic() + 0.02)
    await asyncio.sleep(0.05)
    gate.set()
    with pytest.raises(DeadlineExceeded):
        await take(late, 1)
    assert trace == ["blocker"]


async def test_call_runs_on_the_worker_thread_before_what_waits(scheduler, worker):
    trace, gate = [], threading.Event()
    blocker = CountingJob("blocker", 1, trace, gate)
    post(scheduler, blocker)
    await has_started(scheduler)
    waiting = CountingJob("waiting", 1, trace)
    post(scheduler, waiting)
    called = asyncio.ensure_future(
        worker.call(lambda: (trace.append("call"), threading.current_thread().name)[1])
    )
    await asyncio.sleep(0.01)
    gate.set()
    assert await called == "model-worker"
    await take(waiting, 1)
    assert trace == ["blocker", "call", "waiting"]


async def test_call_raises_what_the_function_raised(worker):
    def broken():
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        await worker.call(broken)
    assert await worker.call(lambda: None) is None


@pytest.mark.parametrize("error", [torch.AcceleratorError("sticky"), SystemExit()])
async def test_death_tells_everybody_who_waits_and_refuses_the_next(scheduler, error):
    worker = Worker(scheduler)
    trace, gate = [], threading.Event()
    killer = CountingJob("killer", 1, trace, gate, error=error)
    post(scheduler, killer)
    await has_started(scheduler)
    waiting = CountingJob("waiting", 1, trace)
    post(scheduler, waiting)
    gate.set()
    with pytest.raises(Unavailable):
        await take(waiting, 1)
    with pytest.raises((Unavailable, Internal)):
        await take(killer, 1)
    await asyncio.wait_for(worker.ended(), 1)
    assert trace == ["killer"]
    with pytest.raises(Unavailable):
        await worker.call(lambda: None)


async def test_stop_tells_everybody_who_waits(scheduler):
    worker = Worker(scheduler)
    never = CountingJob("never", 10**9, [])
    post(scheduler, never)
    assert await take(never, 1) == ["never"]
    await worker.stop()
    assert not worker_threads()
    with pytest.raises(Unavailable):
        await take(never, 10**9)


async def test_a_reader_that_does_not_read_delays_nobody(scheduler, worker):
    ignored, read = CountingJob("ignored", 5000, []), CountingJob("read", 50, [])
    post(scheduler, ignored)
    post(scheduler, read)
    assert len(await take(read, 50)) == 50
    assert len(await take(ignored, 5000)) == 5000


def test_what_fails_together_runs_apart_and_fails_alone():
    calls = []

    def run(jobs):
        calls.append(tuple(jobs))
        if "bad" in jobs:
            raise ValueError("secret")
        return [Progress.MORE] * len(jobs)

    first, failed, last = together_or_apart(["a", "bad", "b"], run)
    assert (first, last) == (Progress.MORE, Progress.MORE)
    assert isinstance(failed, ValueError)
    assert calls == [("a", "bad", "b"), ("a",), ("bad",), ("b",)]


def test_a_fatal_error_is_not_tried_again():
    calls = []

    def run(jobs):
        calls.append(tuple(jobs))
        raise torch.AcceleratorError("sticky")

    outcomes = together_or_apart(["a", "b"], run)
    assert [type(one) for one in outcomes] == [torch.AcceleratorError] * 2
    assert calls == [("a", "b")]
