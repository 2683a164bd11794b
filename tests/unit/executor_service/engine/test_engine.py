"""The engine over a fake model: what is reused, what is refused, who waits for whom."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading

import pytest

from executor_service.core import RoutingChoice, RoutingMode
from executor_service.engine.work import (
    Completed,
    FeaturesAsk,
    FinishReason,
    GenerateAsk,
    Instruction,
    SamplingParams,
    ScoreAsk,
    ScreenSource,
)
from service_chassis.errors import (
    Aborted,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ServiceError,
    Unavailable,
)

SCREEN = ScreenSource(data=b"screen")


def generate_ask(text="go", screen=SCREEN, *, system=None, tokens=32, stop=(), **choice):
    return GenerateAsk(
        instruction=Instruction(text, system),
        screen=screen,
        choice=RoutingChoice(**(choice or {"expert": "a"})),
        expert_set=None,
        max_new_tokens=tokens,
        sampling=SamplingParams(stop=stop),
    )


async def answer(bench, ask, timeout_s=None):
    """The whole text, its token ids and how it ended."""
    deltas, completed = [], None
    async with contextlib.aclosing(bench.engine.generate(ask, timeout_s)) as events:
        async for event in events:
            assert completed is None, "nothing follows `completed`"
            if isinstance(event, Completed):
                completed = event
            else:
                deltas.append(event)
    assert completed is not None
    ids = tuple(token_id for delta in deltas for token_id in delta.token_ids)
    return "".join(delta.text for delta in deltas), ids, completed


async def hold_worker(bench):
    """Keep the worker busy; returns what lets it go."""
    started, gate = threading.Event(), threading.Event()

    def wait():
        started.set()
        gate.wait(10)

    call = asyncio.ensure_future(bench.worker.call(wait))
    await asyncio.to_thread(started.wait, 5)

    async def release():
        gate.set()
        await call

    return release


async def until(happened):
    """Let the worker go on until something has happened."""
    for _ in range(2500):
        if happened():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it did not happen")


async def settled(bench):
    """Nothing waits, runs or holds an expert."""
    await until(lambda: not (bench.scheduler.waiting or bench.scheduler.running))
    assert (bench.scheduler.waiting, bench.scheduler.running) == (0, 0)
    assert {state.in_use for state in bench.engine.experts()} == {0}


async def test_an_answer_and_what_is_said_of_it(bench):
    text, ids, completed = await answer(bench, generate_ask())
    assert len(text) == 10
    assert bench.model.answers.encode_literal(text) == list(ids)
    assert completed.finish_reason is FinishReason.STOP
    usage = completed.usage
    assert (usage.image_tokens, usage.completion_tokens) == (3, 11), "with the end of turn"
    assert usage.prompt_tokens > 3
    applied = completed.applied
    assert applied.gates.weights == (1.0, 0.0, 0.0)
    assert [(e.name, e.digest, e.generation) for e in applied.active] == [("a", "content a", 1)]
    assert applied.expert_set == bench.engine.expert_set
    assert applied.mode is RoutingMode.AS_GIVEN
    timings = completed.timings
    parts = timings.queue_ms + timings.vision_ms + timings.prefill_ms + timings.decode_ms
    assert 0 < timings.time_to_first_token_ms < timings.total_ms
    assert parts <= timings.total_ms
    await settled(bench)


async def test_length_and_stop_strings_end_an_answer(bench):
    whole, ids, _ = await answer(bench, generate_ask())
    text, cut_ids, completed = await answer(bench, generate_ask(tokens=4))
    assert (text, cut_ids) == (whole[:4], ids[:4])
    assert completed.finish_reason is FinishReason.LENGTH
    assert completed.usage.completion_tokens == 4
    text, _, completed = await answer(bench, generate_ask(stop=(whole[3:5],)))
    assert text == whole[: whole.index(whole[3:5])]
    assert completed.finish_reason is FinishReason.STOP_STRING
    text, _, completed = await answer(bench, generate_ask(tokens=len(whole) + 1))
    assert (text, completed.finish_reason) == (whole, FinishReason.STOP)


@pytest.mark.parametrize(
    ("ask", "used"),
    [
        ({"system": "mine", "expert": "b"}, "mine"),
        ({"system": "", "expert": "b"}, ""),
        ({"expert": "b"}, "b's"),
        ({"expert": "a"}, "server's"),
        ({"base_only": True}, "server's"),
        ({"gates": {"a": 0.2, "b": 0.3, "v": 0.5}}, "v's"),
        ({"gates": {"a": 0.2, "b": 0.4, "v": 0.4}}, "b's"),
        ({"gates": {"b": 0.2, "v": 0.8}, "masked": ("v",)}, "b's"),
    ],
)
async def test_which_system_prompt_is_used(bench, ask, used):
    _, _, completed = await answer(bench, generate_ask(**ask))
    digest = hashlib.sha256(used.encode()).hexdigest()
    assert completed.applied.system_prompt_digest == digest
    prompt = bench.model.answers.build(
        system=used or None, history=(), text="go", image_tokens=3, trusted_system=True
    )
    assert completed.usage.prompt_tokens == len(prompt.ids), "it is really in the prompt"


@pytest.mark.parametrize(("ask", "trusted"), [
    ({"expert": "z"}, True),
    ({"system": "<|im_end|>", "expert": "z"}, True),
    ({"system": "<|im_end|>", "expert": "a"}, False),
])  # fmt: skip
async def test_a_caller_that_repeats_the_operators_prompt_gets_its_tokens(bench, ask, trusted):
    await bench.registry.load("z", bench.shelf.put("z", "content z", system_prompt="<|im_end|>"))
    _, _, completed = await answer(bench, generate_ask(**ask))
    prompt = bench.model.answers.build(
        system="<|im_end|>", history=(), text="go", image_tokens=3, trusted_system=trusted
    )
    assert completed.usage.prompt_tokens == len(prompt.ids)


async def features(bench, screen=SCREEN, text="go", timeout_s=None):
    return await bench.engine.extract(FeaturesAsk(Instruction(text), screen), timeout_s)


async def test_features_leave_a_context_behind(bench):
    extracted = await features(bench)
    assert (extracted.model, extracted.feature_spec) == ("base", "spec")
    assert extracted.expert_set == bench.engine.expert_set
    assert (len(extracted.text), extracted.vision) == (3, (1.0, 2.0))
    again = await features(bench, ScreenSource(context_id=extracted.context_id))
    assert again.context_id == extracted.context_id
    assert bench.model.calls["encode_vision"] == 1
    assert bench.reader.reads == 1


async def test_a_context_saves_the_tower_unless_an_expert_changes_it(bench):
    held = ScreenSource(context_id=(await features(bench)).context_id)

    async def looks(**choice):
        before = bench.model.calls["encode_vision"]
        text, _, completed = await answer(bench, generate_ask(screen=held, **choice))
        fresh, _, _ = await answer(bench, generate_ask(**choice))
        assert text == fresh, "the same answer with and without the context"
        # One look is the fresh one's.
        return bench.model.calls["encode_vision"] - before - 1, completed.applied.vision_reused

    assert await looks(expert="a") == (0, True)
    assert await looks(base_only=True) == (0, True)
    assert await looks(gates={"a": 0.5, "b": 0.5}) == (0, True)
    assert await looks(expert="v") == (1, False)
    assert await looks(gates={"a": 0.9, "v": 0.1}) == (1, False)
    assert await looks(gates={"a": 0.9, "v": 0.1}, mode=RoutingMode.TOP1) == (0, True)
    assert await looks(gates={"a": 0.9, "v": 0.1}, masked=("v",)) == (0, True)


async def test_a_fresh_screen_is_not_called_reused(bench):
    _, _, completed = await answer(bench, generate_ask())
    assert not completed.applied.vision_reused


async def test_an_unknown_context_is_said_to_be_expired(bench):
    for call in (
        answer(bench, generate_ask(screen=ScreenSource(context_id="x"))),
        features(bench, ScreenSource(context_id="x")),
    ):
        with pytest.raises(NotFound) as refused:
            await call
        assert refused.value.reason == "CONTEXT_EXPIRED"
    await settled(bench)


async def test_a_score(bench):
    ask = generate_ask()
    scored = await bench.engine.score(
        ScoreAsk(ask.instruction, ask.screen, ask.choice, None, "done"), None
    )
    expected = [*bench.model.answers.encode_answer("done"), bench.model.answers.end_of_turn]
    assert list(scored.token_ids) == expected
    assert list(scored.log_probabilities) == [-float(token_id) for token_id in expected]
    assert len(scored.prompt_token_ids) == scored.usage.prompt_tokens
    assert scored.usage.completion_tokens == 5
    assert scored.applied.active[0].name == "a"


async def test_the_expert_set_must_match(bench):
    ask = generate_ask()
    wrong = GenerateAsk(**{**vars(ask), "expert_set": "other"})
    with pytest.raises(Aborted):
        await answer(bench, wrong)
    right = GenerateAsk(**{**vars(ask), "expert_set": bench.engine.expert_set})
    await answer(bench, right)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text": "x" * 300}, "PROMPT_TOO_LONG"),
        ({"text": "x" * 100, "tokens": 100}, "ANSWER_TOO_LONG"),
        ({"screen": ScreenSource(data=b"bad")}, "UNREADABLE_SCREEN"),
    ],
)
async def test_input_that_cannot_be_used_never_reaches_the_model(bench, changes, reason):
    with pytest.raises(InvalidArgument) as refused:
        await answer(bench, generate_ask(**changes))
    assert refused.value.reason == reason
    assert not bench.model.calls
    await settled(bench)


async def test_features_of_a_long_instruction_are_refused(bench):
    with pytest.raises(InvalidArgument):
        await features(bench, text="x" * 300)


async def test_features_that_are_not_finite_are_our_fault(bench):
    bench.model.features_nan = True
    with pytest.raises(Internal):
        await features(bench)
    assert len(bench.contexts) == 0


async def test_streams_at_once_get_what_each_gets_alone(bench):
    asks = [
        generate_ask(f"instruction {n}", ScreenSource(data=f"{n}".encode()), **choice)
        for n, choice in enumerate(
            [{"expert": "a"}, {"expert": "v"}, {"base_only": True}, {"gates": {"a": 0.5, "b": 0.5}}]
        )
    ]
    alone = [(await answer(bench, ask))[:2] for ask in asks]
    assert len({text for text, _ in alone}) == len(asks)
    together = await asyncio.gather(*(answer(bench, ask) for ask in asks))
    assert [result[:2] for result in together] == alone
    # Two slots: most steps served two answers at once.
    assert bench.model.steps[-20:].count((0, 1)) >= 10
    await settled(bench)


async def test_a_failing_prefill_fails_alone(bench):
    bench.model.step_s = 0.02
    stream = bench.engine.generate(generate_ask("long"), None)
    await anext(stream)
    bench.model.fail["prefill"] = RuntimeError("device says: secret")
    with pytest.raises(Internal) as failed:
        await answer(bench, generate_ask("fails"))
    assert "secret" not in str(failed.value)
    assert bench.slots.cleared == [1], "nothing that is not a number is left behind"
    del bench.model.fail["prefill"]
    events = [event async for event in stream]
    assert isinstance(events[-1], Completed)
    await settled(bench)


async def test_a_row_that_fails_in_a_step_fails_alone(bench):
    alone = (await answer(bench, generate_ask("good")))[:2]
    bench.model.step_s, bench.model.bad_slot = 0.05, 1
    steps = bench.model.calls["decode"]
    good = asyncio.ensure_future(answer(bench, generate_ask("good")))
    await until(lambda: bench.model.calls["decode"] > steps)
    with pytest.raises(Internal):
        await answer(bench, generate_ask("bad"))
    assert (await good)[:2] == alone
    await settled(bench)


async def test_answers_under_an_old_and_a_new_snapshot_run_side_by_side(bench):
    bench.model.step_s = 0.01
    old = asyncio.ensure_future(answer(bench, generate_ask("same", expert="b")))
    await until(lambda: bench.model.calls["decode"] > 0)
    await bench.registry.load("z", bench.shelf.put("z", "content z"))
    new = asyncio.ensure_future(answer(bench, generate_ask("same", expert="b")))
    (old_text, _, old_end), (new_text, _, new_end) = await old, await new
    assert old_end.applied.expert_set != new_end.applied.expert_set
    assert old_text != new_text, "the fake's answer tells the snapshot"
    await settled(bench)


async def test_a_long_prompt_is_prefilled_in_chunks_between_the_steps_of_others(bench):
    bench.model.length = 10
    bench.model.step_s = 0.005
    first = asyncio.ensure_future(answer(bench, generate_ask("first")))
    await until(lambda: bench.model.calls["decode"] > 0)
    before = len(bench.model.spans), bench.model.calls["decode"]
    await answer(bench, generate_ask("x" * 130))
    chunks = bench.model.spans[before[0] :]
    assert len(chunks) >= 3
    assert [start for start, _ in chunks[1:]] == [end for _, end in chunks[:-1]]
    assert max(end - start for start, end in chunks) == 64
    await first
    await settled(bench)


async def test_a_system_turn_is_computed_once_for_the_same_experts_and_gates(bench):
    async def cached(**choice):
        _, _, completed = await answer(bench, generate_ask(**choice))
        _, _, repeated = await answer(bench, generate_ask("other words", **choice))
        assert completed.usage.cached_prompt_tokens == 0, "not computed under these gates before"
        return repeated.usage.cached_prompt_tokens

    own = bench.model.answers.build(system="server's", history=(), text="go", image_tokens=3)
    assert await cached(expert="a") == own.system_tokens > 0
    assert await cached(base_only=True) == own.system_tokens
    assert await cached(gates={"a": 0.75, "b": 0.25}, system="mine") > 0
    assert await cached(gates={"a": 0.625, "b": 0.375}, system="mine") > 0
    assert await cached(expert="a", system="") == 0, "there is no system turn"
    starts = [start for start, _ in bench.model.spans[:2]]
    assert starts == [0, own.system_tokens], "the second begins behind what was kept"
    await bench.registry.reload("a", bench.shelf.put("a", "content a, better"), 1)
    assert await cached(expert="a") == own.system_tokens
    await settled(bench)


async def test_the_same_screen_is_looked_at_once(bench):
    first, second = await features(bench), await features(bench, text="other words")
    assert first.context_id != second.context_id
    assert bench.model.calls["encode_vision"] == 1
    assert len(bench.contexts) == 1
    await features(bench, ScreenSource(data=b"another"))
    assert bench.model.calls["encode_vision"] == 2


async def test_extractions_that_wait_run_together(bench):
    release = await hold_worker(bench)
    asks = [features(bench, ScreenSource(data=bytes([65 + n])), f"{n}") for n in range(4)]
    waiting = [asyncio.ensure_future(ask) for ask in asks]
    await until(lambda: bench.scheduler.waiting == 4)
    await asyncio.sleep(0.02)
    await release()
    found = await asyncio.gather(*waiting)
    assert len({one.context_id for one in found}) == 4
    assert bench.model.batches == [4]
    assert bench.model.calls["encode_vision"] == 1
    await settled(bench)


async def test_log_probabilities_come_with_their_tokens(bench):
    ask = generate_ask()
    ask = GenerateAsk(**{**vars(ask), "sampling": SamplingParams(log_probabilities=True)})
    deltas = [event async for event in bench.engine.generate(ask, None)][:-1]
    assert all(len(one.log_probabilities) == len(one.token_ids) for one in deltas)
    assert all(-6 < each < 0 for one in deltas for each in one.log_probabilities)


async def test_either_end_of_the_public_checkpoints_ends_an_answer(bench, monkeypatch):
    [other] = bench.model.answers.ends - {bench.model.answers.end_of_turn}
    whole = bench.model.answer

    def ended(*asked):
        return [*whole(*asked)[:-1], other, *bench.model.answers.encode_literal("and more")]

    monkeypatch.setattr(bench.model, "answer", ended)
    text, ids, completed = await answer(bench, generate_ask())
    assert completed.finish_reason is FinishReason.STOP
    assert other not in ids
    assert "more" not in text


async def test_cancelling_a_stream_frees_its_slot(bench):
    bench.model.step_s = 0.02
    streams = [bench.engine.generate(generate_ask(f"{n}"), None) for n in range(2)]
    await asyncio.gather(*(anext(stream) for stream in streams))
    release = await hold_worker(bench)
    waiting = asyncio.ensure_future(answer(bench, generate_ask("third")))
    await asyncio.sleep(0.02)
    assert (bench.scheduler.running, bench.scheduler.waiting) == (3, 1), "one is the test's own"
    steps = bench.model.calls["decode"]
    await streams[0].aclose()
    assert bench.engine.experts()[0].in_use == 2, "the closed one is not counted"
    await release()
    await waiting
    left = [event async for event in streams[1]]
    assert isinstance(left[-1], Completed)
    # Together or not, 10 steps for each that was left, and at most the one that was under way.
    assert bench.model.calls["decode"] <= steps + 10 + 10 + 1
    await settled(bench)


async def test_a_full_queue_is_refused_at_once_and_admin_work_is_not(bench):
    release = await hold_worker(bench)
    waiting = [asyncio.ensure_future(answer(bench, generate_ask(f"{n}"))) for n in range(4)]
    await asyncio.sleep(0.02)
    with pytest.raises(ResourceExhausted) as refused:
        await asyncio.wait_for(answer(bench, generate_ask("fifth")), 0.01)
    assert refused.value.retry_after_s > 0
    call = asyncio.ensure_future(bench.worker.call(lambda: "done"))
    await release()
    assert await call == "done"
    assert len(await asyncio.gather(*waiting)) == 4
    await settled(bench)


async def test_a_deadline_that_passes_in_the_queue(bench):
    release = await hold_worker(bench)
    late = asyncio.ensure_future(answer(bench, generate_ask(), timeout_s=0.02))
    await asyncio.sleep(0.05)
    await release()
    with pytest.raises(DeadlineExceeded):
        await late
    assert bench.model.calls["prefill"] == 0
    await settled(bench)


async def test_a_deadline_that_has_passed(bench):
    with pytest.raises(DeadlineExceeded):
        await answer(bench, generate_ask(), timeout_s=0.0)


async def test_death_of_the_worker_reaches_everybody(bench):
    bench.model.step_s = 0.02
    stream = bench.engine.generate(generate_ask("running"), None)
    await anext(stream)
    release = await hold_worker(bench)
    waiting = [asyncio.ensure_future(answer(bench, generate_ask(f"{n}"))) for n in range(2)]
    await asyncio.sleep(0.02)

    def die():
        raise SystemExit

    dying = asyncio.ensure_future(bench.worker.call(die))
    await asyncio.sleep(0.01)
    await release()
    outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 1)
    assert [type(outcome) for outcome in outcomes] == [Unavailable, Unavailable]
    with pytest.raises(ServiceError):
        await dying
    with pytest.raises(Unavailable):
        async for _ in stream:
            pass
    await asyncio.wait_for(bench.engine.ended(), 1)
    with pytest.raises(Unavailable):
        await answer(bench, generate_ask("next"))


@pytest.mark.parametrize("name", ["../a", "A", "", "a_b"])
async def test_admin_names_are_checked_first(bench, name):
    for call in (
        bench.engine.load_expert(name, "a"),
        bench.engine.unload_expert(name, None),
        bench.engine.reload_expert(name, "", 1),
    ):
        with pytest.raises(InvalidArgument) as refused:
            await call
        assert refused.value.reason == "BAD_EXPERT_NAME"


async def test_admin_paths_are_checked(bench):
    with pytest.raises(InvalidArgument):
        await bench.engine.load_expert("c", "../c")
    with pytest.raises(NotFound):
        await bench.engine.load_expert("c", "c")
    with pytest.raises(InvalidArgument):
        await bench.engine.reload_expert("a", "/etc", 1)
    state = await bench.engine.reload_expert("a", "", 1)
    assert state.identity.generation == 2


async def test_an_expired_context_is_dropped_without_a_further_request(bench, monkeypatch):
    from dataclasses import replace

    facts = bench.engine.facts
    limits = replace(facts.limits, context_ttl_seconds=-1)
    monkeypatch.setattr(bench.engine, "facts", replace(facts, limits=limits))
    monkeypatch.setattr(bench.contexts, "_ttl_s", 0.0)
    await features(bench)
    await asyncio.sleep(0.05)
    assert bench.contexts.held_bytes == 0
