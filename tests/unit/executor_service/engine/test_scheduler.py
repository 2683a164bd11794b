"""The scheduler alone: no model, no thread, a clock that the test turns."""

from __future__ import annotations

import threading

import pytest

from executor_service.engine.scheduler import Drop, Lane, Progress, Scheduler, State
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


def admit(scheduler: Scheduler[str], name: str, lane: Lane = Lane.SEQUENCE, **options: object):
    ticket = scheduler.admit(name, lane, **options)
    scheduler.ready(ticket)
    return ticket


def names(tickets) -> list[str]:
    return [ticket.work for ticket in tickets]


def take(scheduler: Scheduler[str], progress: Progress = Progress.STEPS) -> list[str]:
    """What the next turn's part runs; it ends with `progress`."""
    part = scheduler.turn().part
    for ticket in part:
        scheduler.report(ticket, progress)
    return names(part)


def test_one_part_a_turn_in_order_and_all_that_step_together(scheduler):
    for name in "abc":
        admit(scheduler, name)
    turns = []
    for _ in range(3):
        turn = scheduler.turn()
        turns.append((names(turn.step), names(turn.part)))
        for ticket in turn.part:
            scheduler.report(ticket, Progress.STEPS)
    assert turns[:2] == [([], ["a"]), (["a"], ["b"])]
    assert turns[2] == (["a", "b"], []), "both slots are taken"


def test_a_prefill_goes_on_before_the_next_one_starts(scheduler):
    a, b = admit(scheduler, "a"), admit(scheduler, "b")
    assert take(scheduler, Progress.MORE) == ["a"]
    assert take(scheduler, Progress.MORE) == ["a"]
    assert take(scheduler, Progress.OVER) == ["a"]
    assert a.state is State.OVER
    assert take(scheduler) == ["b"]
    assert b.state is State.STEPPING


def test_slots_are_the_lowest_that_are_free(scheduler):
    a, b, c = (admit(scheduler, name) for name in "abc")
    take(scheduler)
    take(scheduler)
    assert (a.slot, b.slot) == (0, 1)
    scheduler.report(a, Progress.OVER)
    take(scheduler)
    assert c.slot == 0


def test_a_free_slot_goes_to_the_one_who_waited_longest(scheduler):
    a, *_ = (admit(scheduler, name) for name in "abc")
    take(scheduler)
    take(scheduler)
    assert take(scheduler) == []
    scheduler.report(a, Progress.OVER)
    assert take(scheduler) == ["c"]


def test_features_run_together_and_need_no_slot():
    scheduler: Scheduler[str] = Scheduler(queue_length=9, slots=1, features_batch=3)
    admit(scheduler, "a")
    take(scheduler)
    for name in "pqrs":
        ticket = admit(scheduler, name, Lane.FEATURES)
        assert ticket.slot is None
    assert take(scheduler, Progress.OVER) == ["p", "q", "r"]
    assert take(scheduler, Progress.OVER) == ["s"]


def test_features_and_a_prefill_take_turns(scheduler):
    admit(scheduler, "a")
    take(scheduler, Progress.MORE)
    runs = []
    for number in range(3):
        admit(scheduler, f"f{number}", Lane.FEATURES)
        for _ in range(2):
            [name] = names(part := scheduler.turn().part)
            scheduler.report(part[0], Progress.MORE if name == "a" else Progress.OVER)
            runs.append(name)
    assert runs == ["f0", "a", "f1", "a", "f2", "a"]


def test_what_is_not_prepared_does_not_start_and_blocks_nobody(scheduler):
    slow = scheduler.admit("slow", Lane.SEQUENCE)
    admit(scheduler, "quick")
    assert take(scheduler) == ["quick"]
    scheduler.ready(slow)
    assert take(scheduler) == ["slow"]


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
        scheduler.report(ticket, Progress.OVER)
        for name in "abc":
            admit(scheduler, name)
        with pytest.raises(ResourceExhausted) as refused:
            admit(scheduler, "d")
        delays.append(refused.value.retry_after_s)
        for ticket in list(scheduler._queue):
            scheduler.cancel(ticket)
    assert delays[0] < delays[1] <= 30


def test_a_deadline_that_the_queue_cannot_meet_is_refused_at_once(scheduler, clock):
    """An answer takes 2 s by the mean, there are two slots, and two wait already."""
    scheduler._mean_sequence_s = 2.0
    for name in "ab":
        admit(scheduler, name)
    with pytest.raises(DeadlineExceeded) as refused:
        admit(scheduler, "c", deadline_s=clock.now_s + 1.9)
    assert refused.value.reason == "DEADLINE_TOO_SHORT"
    assert scheduler.waiting == 2
    features = admit(scheduler, "features", Lane.FEATURES, deadline_s=clock.now_s + 0.1)
    scheduler.cancel(features)
    admit(scheduler, "d", deadline_s=clock.now_s + 2.1)


def test_what_answers_take_is_learnt_from_them_alone(scheduler, clock):
    for lane, run_s in ((Lane.FEATURES, 0.0), (Lane.SEQUENCE, 10.0)):
        ticket = admit(scheduler, "x", lane)
        scheduler.turn()
        clock.now_s += run_s
        scheduler.report(ticket, Progress.OVER)
    assert scheduler._mean_sequence_s == pytest.approx(2.0)


def test_urgent_work_is_never_refused_and_goes_first(scheduler):
    for name in "abc":
        admit(scheduler, name)
    admit(scheduler, "probe", Lane.CALL)
    assert take(scheduler, Progress.OVER) == ["probe"]


def test_expired_in_the_queue_is_dropped_and_never_started(scheduler, clock):
    admit(scheduler, "late", deadline_s=clock.now_s + 5)
    admit(scheduler, "fine")
    clock.now_s += 5
    turn = scheduler.turn()
    assert [(t.work, why) for t, why in turn.dropped] == [("late", Drop.EXPIRED)]
    assert names(turn.part) == ["fine"]


def test_expired_while_running_is_dropped_before_its_next_step(scheduler, clock):
    admit(scheduler, "late", deadline_s=clock.now_s + 5)
    take(scheduler)
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
    assert take(scheduler) == ["b"]


def test_cancel_while_preparing_and_then_ready_never_starts(scheduler):
    ticket = scheduler.admit("a", Lane.SEQUENCE)
    scheduler.cancel(ticket)
    scheduler.ready(ticket)
    assert scheduler.turn().idle
    assert ticket.state is State.OVER


@pytest.mark.parametrize("progress", [Progress.MORE, Progress.STEPS])
def test_cancel_while_running_frees_the_slot_before_the_next_part(scheduler, progress):
    a, _, _ = (admit(scheduler, name) for name in "abc")
    take(scheduler)
    take(scheduler, progress)
    scheduler.cancel(a)
    turn = scheduler.turn()
    assert [(t.work, why) for t, why in turn.dropped] == [("a", Drop.CANCELLED)]
    if progress is Progress.STEPS:
        assert names(turn.part) == ["c"], "the slot is free in the same turn"
        assert names(turn.step) == ["b"]
    else:
        assert names(turn.part) == ["b"], "it is still being prefilled"


def test_cancel_and_report_after_the_end_change_nothing(scheduler):
    a = admit(scheduler, "a")
    scheduler.turn()
    scheduler.report(a, Progress.OVER)
    scheduler.cancel(a)
    scheduler.report(a, Progress.STEPS)
    assert a.state is State.OVER
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

    scheduler.admit("never ready", Lane.SEQUENCE, deadline_s=time.monotonic() + 0.05)
    scheduler.wait()
    assert [why for _, why in scheduler.turn().dropped] == [Drop.EXPIRED]


def test_wait_survives_a_deadline_of_millennia():
    scheduler: Scheduler[str] = Scheduler(queue_length=2, slots=1)
    scheduler.admit("patient", Lane.SEQUENCE, deadline_s=1e12)
    waiter = threading.Thread(target=scheduler.wait)
    waiter.start()
    admit(scheduler, "a")
    waiter.join(timeout=5)
    assert not waiter.is_alive()
    assert take(scheduler) == ["a"]


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
                lane = Lane.SEQUENCE if chance.random() < 0.7 else Lane.FEATURES
                ticket = scheduler.admit(number, lane, deadline_s=deadline_s)
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
            for ticket in (*turn.step, *turn.part):
                assert ticket.state in (State.STARTED, State.STEPPING)
                progress = chance.choice(list(Progress))
                if ticket.state is State.STEPPING:
                    progress = chance.choice((Progress.STEPS, Progress.OVER))
                if ticket._lane is Lane.FEATURES:
                    progress = Progress.OVER
                scheduler.report(ticket, progress)
                if progress is Progress.OVER:
                    over.append(ticket)
            for ticket in over:
                ends[ticket.work] = ends.get(ticket.work, 0) + 1
                del live[ticket.work]
        slots = [t.slot for t in scheduler._running if t.slot is not None]
        assert len(set(slots)) == len(slots) <= 3
        assert scheduler.waiting <= 5
    for ticket in scheduler.close():
        ends[ticket.work] = ends.get(ticket.work, 0) + 1
        del live[ticket.work]
    assert not live
    assert set(ends.values()) == {1}
