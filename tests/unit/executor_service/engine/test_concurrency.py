"""The whole engine over a real model: whatever runs beside it, a request gets its own answer.

Hypothesis decides what arrives when, what is cancelled and when an expert is replaced. Every answer
is compared with the one that the same request gets when it is the only one.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from executor_service.core import RoutingChoice, RoutingMode
from executor_service.engine.engine import Engine
from executor_service.engine.work import (
    Completed,
    FeaturesAsk,
    GenerateAsk,
    Instruction,
    SamplingParams,
    ScreenSource,
)
from executor_service.server import build_engine
from executor_service.settings import ExecutorSettings
from service_chassis.errors import ResourceExhausted
from tests.support.checkpoints import untrained_checkpoint
from tests.support.experts import write_expert

SAMPLES = Path(__file__).parents[4] / "miniature/samples/images"
SCREENS = [(SAMPLES / f"calendar_0000{n}.png").read_bytes() for n in range(2)]
SLOTS = 3
CHOICES = [
    RoutingChoice(expert="blind"),
    RoutingChoice(expert="seeing"),
    RoutingChoice(base_only=True),
    RoutingChoice(gates={"blind": 0.5, "seeing": 0.5}),
    RoutingChoice(gates={"blind": 0.75, "seeing": 0.25}, mode=RoutingMode.TOP1),
]
SAMPLINGS = [
    SamplingParams(),
    SamplingParams(temperature=2.0, seed=7),
    SamplingParams(temperature=1.0, top_k=5, top_p=0.9, seed=8, log_probabilities=True),
]


def asked(number, screen, choice, sampling, tokens, system):
    return GenerateAsk(
        instruction=Instruction(f"Click December {number}", system),
        screen=ScreenSource(data=SCREENS[screen]),
        choice=choice,
        expert_set=None,
        max_new_tokens=tokens,
        sampling=sampling,
    )


asks = st.builds(
    asked,
    number=st.integers(1, 3),
    screen=st.integers(0, 1),
    choice=st.sampled_from(CHOICES),
    sampling=st.sampled_from(SAMPLINGS),
    tokens=st.sampled_from([1, 7, 20]),
    system=st.sampled_from(["", "You click in calendars."]),
)


async def answer(engine: Engine, ask: GenerateAsk):
    """Token ids, and what was applied."""
    ids: list[int] = []
    async with contextlib.aclosing(engine.generate(ask, None)) as events:
        async for event in events:
            if isinstance(event, Completed):
                return tuple(ids), event.applied
            ids += event.token_ids
    raise AssertionError("a stream without `completed`")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two experts, and another content for one of them."""
    base, root = untrained_checkpoint(), tmp_path_factory.mktemp("concurrency")
    write_expert(base, root / "blind", rank=4, seed=1, vision=False)
    write_expert(base, root / "seeing", rank=8, seed=2)
    write_expert(base, root / "spare/blind", rank=4, seed=3, vision=False)
    return base, root


def test_answers_do_not_depend_on_what_runs_beside_them(place):
    base, root = place
    loop = asyncio.new_event_loop()
    flags = ExecutorSettings(
        model=base, experts_root=root, slots=SLOTS, queue_length=6, prefill_chunk_tokens=50,
        slot_tokens=512, device="cpu",
    )  # fmt: skip
    engine, alone = (loop.run_until_complete(build_engine(flags)) for _ in range(2))
    expected: dict[str, tuple[int, ...]] = {}
    generation = {engine: 1, alone: 1}
    contents = ["blind", "spare/blind"]

    def put(one: Engine, content: str) -> None:
        """Make one of the two contents that of `blind`."""
        change = one.reload_expert("blind", content, generation[one])
        generation[one] = loop.run_until_complete(change).identity.generation

    class Traffic(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.running: dict[asyncio.Future, tuple[str, GenerateAsk]] = {}
            put(engine, contents[0])
            self.content = contents[0]

        @initialize(ask=asks)
        def begins(self, ask):
            self.starts(ask)

        @rule(ask=asks)
        def arrives(self, ask):
            self.starts(ask)

        def starts(self, ask):
            task = asyncio.ensure_future(answer(engine, ask), loop=loop)
            self.running[task] = (self.content, ask)
            self.passes(0)

        @rule(steps=st.integers(0, 15))
        def passes(self, steps):
            loop.run_until_complete(asyncio.sleep(steps / 1000))

        @rule(pick=st.integers(0, 10))
        def cancelled(self, pick):
            if self.running:
                task = list(self.running)[pick % len(self.running)]
                task.cancel()
                self.running.pop(task)
                loop.run_until_complete(asyncio.gather(task, return_exceptions=True))

        @rule()
        def replaced(self):
            self.content = contents[contents.index(self.content) - 1]
            put(engine, self.content)

        @rule(screen=st.sampled_from(SCREENS))
        def looked_at(self, screen):
            ask = FeaturesAsk(Instruction("Click"), ScreenSource(data=screen))
            with contextlib.suppress(ResourceExhausted):
                loop.run_until_complete(engine.extract(ask, None))

        @invariant()
        def bounded(self):
            assert engine._scheduler.waiting <= 6

        def teardown(self):
            for task, (content, ask) in self.running.items():
                try:
                    ids, applied = loop.run_until_complete(asyncio.wait_for(task, 60))
                except ResourceExhausted:
                    continue
                assert ids == self.expected(content, ask)
                assert applied.base_only == ask.choice.base_only
            for _ in range(200):
                if not (engine._scheduler.waiting or engine._scheduler.running):
                    break
                self.passes(5)
            assert (engine._scheduler.waiting, engine._scheduler.running) == (0, 0)
            assert {state.in_use for state in engine.experts()} == {0}

        def expected(self, content, ask):
            told = ask.instruction, SCREENS.index(ask.screen.data)
            key = str(
                (content, vars(told[0]), told[1], ask.choice, ask.sampling, ask.max_new_tokens)
            )
            if key not in expected:
                put(alone, content)
                expected[key] = loop.run_until_complete(answer(alone, ask))[0]
            return expected[key]

    try:
        run_state_machine_as_test(
            Traffic,
            settings=settings(
                max_examples=12,
                stateful_step_count=15,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        assert expected
        # However few of them were drawn: requests that differ are answered differently.
        told = [
            asked(1, 0, choice, sampling, 20, "") for choice in CHOICES for sampling in SAMPLINGS
        ]
        different = {loop.run_until_complete(answer(alone, ask))[0] for ask in told}
        assert len(different) > 5
    finally:
        for one in (engine, alone):
            loop.run_until_complete(one.close())
        loop.close()
