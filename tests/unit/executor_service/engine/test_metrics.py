"""What the engine counts, against what it was asked; the model is a fake."""

import asyncio
import contextlib

import pytest
from prometheus_client import generate_latest

from executor_service.core import RoutingChoice
from executor_service.engine.work import FeaturesAsk, Instruction, ScoreAsk, ScreenSource
from service_chassis.errors import NotFound
from tests.unit.executor_service.engine.test_engine import (
    SCREEN,
    answer,
    generate_ask,
    hold_worker,
    settled,
    until,
)


def sample(bench, name, **labels):
    return bench.counted.get_sample_value(f"molora_{name}", labels)


def cache(bench, name):
    counts = [sample(bench, f"cache_{kind}_total", cache=name) for kind in ("queries", "hits")]
    return tuple(counts)


async def test_every_series_is_there_before_the_first_request(bench):
    text = generate_latest(bench.counted).decode()
    for expert in "abv":
        assert f'molora_gate_weight_total{{expert="{expert}"}} 0.0' in text
    for name in ("context", "screen", "vision", "prefix"):
        assert cache(bench, name) == (0, 0)
    for kind in ("expert", "base_only", "mask"):
        assert sample(bench, "overrides_total", kind=kind) == 0


async def test_tokens_and_their_times(bench):
    _, _, first = await answer(bench, generate_ask())
    _, _, short = await answer(bench, generate_ask(tokens=1))
    tokens = first.usage.completion_tokens
    assert sample(bench, "time_to_first_token_seconds_count") == 2
    assert sample(bench, "inter_token_latency_seconds_count") == tokens - 1
    assert sample(bench, "request_queue_time_seconds_count") == 2
    told_ms = first.timings.time_to_first_token_ms + short.timings.time_to_first_token_ms
    seconds = sample(bench, "time_to_first_token_seconds_sum")
    assert seconds == pytest.approx(told_ms / 1000)
    assert short.timings.time_to_first_token_ms > 0, "also where the first token is the last"
    between = sample(bench, "inter_token_latency_seconds_sum")
    assert 0 < between < (first.timings.total_ms) / 1000


async def test_gates_and_overrides(bench):
    for choice in (
        {"gates": {"a": 0.25, "v": 0.75}},
        {"expert": "a"},
        {"base_only": True},
        {"gates": {"a": 0.5, "b": 0.5}, "masked": ("b",)},
    ):
        await answer(bench, generate_ask(**choice))
    await bench.engine.score(
        ScoreAsk(Instruction("go", None), SCREEN, RoutingChoice(expert="b"), None, "x"), None
    )
    weights = {name: sample(bench, "gate_weight_total", expert=name) for name in "abv"}
    requests = {name: sample(bench, "expert_requests_total", expert=name) for name in "abv"}
    assert weights == {"a": 2.25, "b": 1.0, "v": 0.75}
    assert requests == {"a": 3, "b": 1, "v": 1}
    kinds = ("expert", "base_only", "mask")
    counts = {kind: sample(bench, "overrides_total", kind=kind) for kind in kinds}
    assert counts == {"expert": 2, "base_only": 1, "mask": 1}


async def test_hits(bench):
    extract = FeaturesAsk(Instruction("go", None), SCREEN)
    context_id = (await bench.engine.extract(extract, None)).context_id
    await bench.engine.extract(extract, None)
    assert cache(bench, "screen") == (2, 1)
    held = ScreenSource(context_id=context_id)
    for expert in "abbv":  # v adapts the tower; the system prompt of b is prefilled once
        await answer(bench, generate_ask(screen=held, expert=expert))
    with pytest.raises(NotFound):
        await answer(bench, generate_ask(screen=ScreenSource(context_id="unknown")))
    assert cache(bench, "context") == (5, 4)
    assert cache(bench, "vision") == (4, 3)
    assert cache(bench, "prefix") == (4, 1)


async def test_running_and_waiting(bench):
    release = await hold_worker(bench)
    asked = asyncio.ensure_future(answer(bench, generate_ask()))
    await until(lambda: sample(bench, "num_requests_waiting") == 1)
    assert sample(bench, "num_requests_running") == 1, "the call that holds the worker"
    await release()
    await asked
    await settled(bench)
    assert sample(bench, "num_requests_waiting") == sample(bench, "num_requests_running") == 0


async def test_f120_only_loaded_experts_become_labels(bench, tmp_path):
    def series():
        return generate_latest(bench.counted).decode().count("\n")

    before = series()
    for number in range(1000):
        with contextlib.suppress(NotFound):
            await answer(bench, generate_ask(expert=f"name-{number}"))
    assert series() == before
    folder = tmp_path / "new"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).touch()
    bench.shelf.put(folder, "content new")
    for _ in range(3):
        await bench.engine.load_expert("new", "new")
        await answer(bench, generate_ask(expert="new"))
        assert sample(bench, "gate_weight_total", expert="new") == 1
        assert series() > before
        await bench.engine.unload_expert("new", None)
        assert sample(bench, "gate_weight_total", expert="new") is None
        assert series() == before
