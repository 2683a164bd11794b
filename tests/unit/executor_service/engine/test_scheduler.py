"""The scheduler alone: no model, no thread, a clock that the test turns."""

from __future__ import annotations

import threading

import pytest

from executor_service.engine.scheduler import Drop, Scheduler, State
from service_chassis.errors import DeadlineExceeded, ResourceExhausted, Unavailable


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def scheduler(clock: Clock) -> Scheduler[str]:
    return Scheduler(queue_length=3, slots=2, clock=clock)


def admit(scheduler: Scheduler[str], name: str, *, slot: bool = True, **options: object):
    ticket = scheduler.admit(name, needs_slot=slot, **options)
    scheduler.ready(ticket)
    return ticket


def started(scheduler: Scheduler[str]) -> str | None:
    turn = scheduler.turn()
    return turn.start.work if turn.start else None


def test_starts_one_per_turn_in_order_and_steps_the_others(scheduler):
    for name in "abc":
        admit(scheduler, name)
    first, second, third = (scheduler.turn() for _ in range(3))
    assert (first.start.work, first.step) == ("a", ())
    assert (second.start.work, [t.work for t in second.step]) == ("b", ["a"])
    assert third.start is None, "both slots are taken"
    assert [t.work for t in third.step] == ["a", "b"]


def test_a_free_slot_goes_to_the_one_who_waited_longest(scheduler):
    a, _, _ = (admit(scheduler, name) for name in "abc")
    scheduler.turn()
    scheduler.turn()
    scheduler.finish(a)
    assert started(scheduler) == "c"
    assert a.state is State.OVER


def test_what_needs_no_slot_overtakes_what_waits_for_one(scheduler):
    for name in "ab":
        admit(scheduler, name)
        scheduler.turn()
    admit(scheduler, "c")
    admit(scheduler, "features", slot=False)
    assert started(scheduler) == "features"


def test_what_is_not_prepared_does_not_start_and_blocks_nobody(scheduler):
    slow = scheduler.admit("slow", needs_slot=True)
    admit(scheduler, "quick")
    assert started(scheduler) == "quick"
    scheduler.ready(slow)
    assert started(scheduler) == "slow"


def test_a_full_queue_refuses_with_a_delay_and_keeps_its_content(scheduler):
    for name in "abc":
        admit(scheduler, name)
    with pytest.raises(ResourceExhausted) as refused:
        admit(scheduler, "d")
    assert refused.value.reason == "QUEUE_FULL"
    assert refused.value.retry_after_s > 0
    assert scheduler.waiting == 3


def test_the_delay_follows_how_long_requests_run(scheduler, clock):
    delays = []
    for run_s in (1.0, 50.0):
        ticket = admit(scheduler, "x")
        scheduler.turn()
        clock.now_s += run_s
        scheduler.finish(ticket)
        for name in "abc":
            admit(scheduler, name)
        with pytest.raises(ResourceExhausted) as refused:
            admit(scheduler, "d")
        delays.append(refused.value.retry_after_s)
        for ticket in list(scheduler._queue):
            scheduler.cancel(ticket)
    assert delays[0] < delays[1] <= 30


def test_urgent_work_is_never_refused_and_goes_first(scheduler):
    for name in "abc":
        admit(scheduler, name)
    admit(scheduler, "probe", slot=False, urgent=True)
    assert started(scheduler) == "probe"


def test_expired_in_the_queue_is_dropped_and_never_started(scheduler, clock):
    admit(scheduler, "late", deadline_s=clock.now_s + 5)
    admit(scheduler, "fine")
    clock.now_s += 5
    turn = scheduler.turn()
    assert [(t.work, why) for t, why in turn.dropped] == [("late", Drop.EXPIRED)]
    assert turn.start.work == "fine"


def test_expired_while_running_is_dropped_before_its_next_step(scheduler, clock):
    admit(scheduler, "late", deadline_s=clock.now_s + 5)
    scheduler.turn()
    clock.now_s += 6
    turn = scheduler.turn()
    assert [(t.work, why) for t, why in turn.dropped] == [("late", Drop.EXPIRED)]
    assert turn.step == ()
    assert scheduler.running == 0


def test_a_deadline_that_has_passed_is_refused_at_once(scheduler, clock):
    with pytest.raises(DeadlineExceeded):
        admit(scheduler, "late", deadline_s=clock.now_s)
    assert scheduler.waiting == 0


def test_cancel_in_the_queue_frees_the_place_at_once(scheduler):
    a, *_ = (admit(scheduler, name) for name in "abc")
    scheduler.cancel(a)
    assert scheduler.waiting == 2
    admit(scheduler, "d")
    assert started(scheduler) == "b"


def test_cancel_while_preparing_and_then_ready_never_starts(scheduler):
    ticket = scheduler.admit("a", needs_slot=True)
    scheduler.cancel(ticket)
    scheduler.ready(ticket)
    assert scheduler.turn().idle
    assert ticket.state is State.OVER


def test_cancel_while_running_frees_the_slot_before_the_next_step(scheduler):
    a, _, _ = (admit(scheduler, name) for name in "abc")
    scheduler.turn()
    scheduler.turn()
    scheduler.cancel(a)
    turn = scheduler.turn()
    assert [(t.work, why) for t, why in turn.dropped] == [("a", Drop.CANCELLED)]
    assert turn.start.work == "c", "the slot is free in the same turn"
    assert [t.work for t in turn.step] == ["b"]


def test_cancel_and_finish_after_the_end_change_nothing(scheduler):
    a = admit(scheduler, "a")
    scheduler.turn()
    scheduler.finish(a)
    scheduler.cancel(a)
    scheduler.finish(a)
    assert scheduler.turn().idle


def test_close_returns_everybody_and_refuses_from_then_on(scheduler):
    a, b = admit(scheduler, "a"), admit(scheduler, "b")
    scheduler.turn()
    assert {t.work for t in scheduler.close()} == {"a", "b"}
    assert (a.state, b.state) == (State.OVER, State.OVER)
    assert scheduler.turn().idle
    with pytest.raises(Unavailable):
        admit(scheduler, "c")


@pytest.mark.parametrize("event", ["ready", "close"])
def test_wait_returns_on_work_and_on_close(event):
    scheduler: Scheduler[str] = Scheduler(queue_length=1, slots=1)
    waiter = threading.Thread(target=scheduler.wait)
    waiter.start()
    if event == "ready":
        admit(scheduler, "a")
    else:
        scheduler.close()
    waiter.join(timeout=5)
    assert not waiter.is_alive()


def test_wait_returns_when_a_deadline_in_the_queue_passes():
    scheduler: Scheduler[str] = Scheduler(queue_length=1, slots=1)
    import time

    scheduler.admit("never ready", needs_slot=True, deadline_s=time.monotonic() + 0.05)
    scheduler.wait()
    assert [why for _, why in scheduler.turn().dropped] == [Drop.EXPIRED]


def test_wait_survives_a_deadline_of_millennia():
    scheduler: Scheduler[str] = Scheduler(queue_length=2, slots=1)
    scheduler.admit("patient", needs_slot=True, deadline_s=1e12)
    waiter = threading.Thread(target=scheduler.wait)
    waiter.start()
    admit(scheduler, "a")
    waiter.join(timeout=5)
    assert not waiter.is_alive()
    assert started(scheduler) == "a"


def test_random_traffic_ends_every_ticket_once_and_leaks_nothing(clock):
    import random

    chance = random.Random(7)
    scheduler: Scheduler[int] = Scheduler(queue_length=5, slots=3, clock=clock)
    ends: dict[int, int] = {}
    live = {}
    for number in range(2000):
        clock.now_s += 0.1
        action = chance.random()
        if action < 0.4:
            try:
                deadline_s = clock.now_s + 1 if chance.random() < 0.3 else None
                ticket = scheduler.admit(
                    number, needs_slot=chance.random() < 0.7, deadline_s=deadline_s
                )
            except ResourceExhausted:
                continue
            live[number] = ticket
            scheduler.ready(ticket)
        elif action < 0.5 and live:
            ticket = chance.choice(list(live.values()))
            if ticket.state is State.WAITING:
                ends[ticket.work] = ends.get(ticket.work, 0) + 1
                del live[ticket.work]
            scheduler.cancel(ticket)
        else:
            turn = scheduler.turn()
            over = [t for t, _ in turn.dropped]
            for ticket in (*turn.step, *([turn.start] if turn.start else [])):
                assert ticket.state is State.RUNNING
                if chance.random() < 0.3 or not ticket._needs_slot:
                    scheduler.finish(ticket)
                    over.append(ticket)
            for ticket in over:
                ends[ticket.work] = ends.get(ticket.work, 0) + 1
                del live[ticket.work]
        assert sum(t._needs_slot for t in scheduler._running) <= 3
        assert scheduler.waiting <= 5
    for ticket in scheduler.close():
        ends[ticket.work] = ends.get(ticket.work, 0) + 1
        del live[ticket.work]
    assert not live
    assert set(ends.values()) == {1}
