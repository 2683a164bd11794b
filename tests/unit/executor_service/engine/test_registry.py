"""Snapshots of experts and how they change."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from executor_service.core import RoutingChoice
from executor_service.engine.registry import ExpertRegistry
from service_chassis.errors import (
    Aborted,
    AlreadyExists,
    DataLoss,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ServiceError,
)


def use(name: str) -> RoutingChoice:
    return RoutingChoice(expert=name)


def listed(registry) -> list[tuple[str, str, int]]:
    return [(s.identity.name, s.identity.digest, s.identity.generation) for s in registry.states()]


@pytest.fixture
async def loaded(registry, shelf):
    """Two experts: a, b."""
    await registry.load("b", shelf.put("b", "bb"))
    await registry.load("a", shelf.put("a", "aa"))
    return registry


async def test_the_order_does_not_depend_on_the_history(loaded):
    assert listed(loaded) == [("a", "aa", 1), ("b", "bb", 1)]


async def test_what_was_refused_changes_nothing(loaded, shelf):
    before = (loaded.current, listed(loaded))
    same_content = shelf.put("copy", "aa")
    other_content = shelf.put("other", "a2")
    damaged = shelf.put("damaged", DataLoss("BAD", "x"))
    broken = shelf.put("broken", "cc", task_types=("broken",))
    too_large = shelf.put("too-large", MemoryError())
    attempts = [
        (loaded.load("a", other_content), AlreadyExists),
        (loaded.load("c", same_content), AlreadyExists),
        (loaded.load("c", damaged), DataLoss),
        (loaded.load("c", broken), InvalidArgument),
        (loaded.load("c", too_large), ResourceExhausted),
        (loaded.reload("a", damaged, 1), DataLoss),
        (loaded.reload("a", broken, 1), InvalidArgument),
        (loaded.reload("a", shelf.put("b-again", "bb"), 1), AlreadyExists),
        (loaded.reload("a", other_content, 2), Aborted),
        (loaded.reload("a", other_content, 0), InvalidArgument),
        (loaded.reload("z", other_content, 1), NotFound),
        (loaded.unload("z", None), NotFound),
        (loaded.unload("a", 7), Aborted),
    ]
    for attempt, error in attempts:
        with pytest.raises(error) as refused:
            await attempt
        assert isinstance(refused.value, ServiceError)
        assert (loaded.current, listed(loaded)) == before
    # A refused load must not use up a generation either.
    assert (await loaded.load("c", shelf.put("c", "cc"))).identity.generation == 1


async def test_loading_the_same_again_changes_nothing(loaded):
    before = loaded.current
    state = await loaded.load("a", Path("a"))
    assert state.identity.generation == 1
    assert loaded.current is before


async def test_reload_counts_up_and_reads_the_old_place_by_default(loaded, shelf):
    digest = loaded.current.digest
    shelf.put("a", "a2")
    state = await loaded.reload("a", None, 1)
    assert (state.identity.digest, state.identity.generation) == ("a2", 2)
    assert loaded.current.digest != digest
    again = await loaded.reload("a", shelf.put("new place", "aa"), 2)
    assert again.identity.generation == 3
    assert loaded.current.digest == digest, "the digest is of content, not of history"


async def test_a_generation_never_comes_back(loaded):
    await loaded.unload("a", 1)
    assert (await loaded.load("a", Path("a"))).identity.generation == 2


async def test_generations_go_on_from_those_of_the_start(loaded, shelf):
    async def probe(experts, name):
        pass

    started = ExpertRegistry(loaded.current, num_layers=2, load=shelf.load, probe=probe)
    assert (await started.reload("a", None, 1)).identity.generation == 2
    await started.unload("b", 1)
    assert (await started.load("b", Path("b"))).identity.generation == 2
    started.close()


async def test_a_request_keeps_what_it_started_with(loaded, shelf):
    with loaded.hold(use("a"), None) as held:
        await loaded.reload("a", shelf.put("a", "a2"), 1)
        assert [e.identity.digest for e in held.active] == ["aa"]
        with loaded.hold(use("a"), None) as later:
            assert [e.identity.digest for e in later.active] == ["a2"]


async def test_the_caller_s_expert_set_must_be_the_loaded_one(loaded, shelf):
    digest = loaded.current.digest
    with loaded.hold(use("a"), digest):
        pass
    await loaded.reload("a", shelf.put("a", "a2"), 1)
    with pytest.raises(Aborted) as refused, loaded.hold(use("a"), digest):
        pass
    assert refused.value.reason == "EXPERT_SET_CHANGED"
    assert refused.value.metadata == {"expert_set": loaded.current.digest}
    with pytest.raises(Aborted), loaded.hold(use("a"), ""):
        pass


async def test_in_use_counts_requests_with_a_gate(loaded):
    def in_use():
        return [state.in_use for state in loaded.states()]

    with loaded.hold(use("a"), None), loaded.hold(use("a"), None):
        assert in_use() == [2, 0]
        with loaded.hold(RoutingChoice(gates={"a": 0.5, "b": 0.5}), None):
            assert in_use() == [3, 1]
        with loaded.hold(RoutingChoice(base_only=True), None):
            assert in_use() == [2, 0]
    assert in_use() == [0, 0]


async def test_in_use_is_right_after_a_request_that_failed(loaded):
    with pytest.raises(RuntimeError), loaded.hold(use("a"), None):
        raise RuntimeError
    with pytest.raises(NotFound), loaded.hold(use("z"), None):
        pass
    assert [state.in_use for state in loaded.states()] == [0, 0]


async def test_unload_hides_at_once_and_returns_when_nobody_holds(loaded):
    with loaded.hold(use("a"), None):
        unloading = asyncio.ensure_future(loaded.unload("a", 1))
        await asyncio.sleep(0.01)
        assert not unloading.done()
        with pytest.raises(NotFound), loaded.hold(use("a"), None):
            pass
        with loaded.hold(use("b"), None):
            pass
        await asyncio.sleep(0.01)
        assert not unloading.done()
    state = await asyncio.wait_for(unloading, 1)
    assert (state.identity.name, state.in_use) == ("a", 0)
    assert [name for name, *_ in listed(loaded)] == ["b"]


async def test_unload_waits_for_older_generations_too(loaded, shelf):
    with loaded.hold(use("a"), None):
        await loaded.reload("a", shelf.put("a", "a2"), 1)
        unloading = asyncio.ensure_future(loaded.unload("a", 2))
        await asyncio.sleep(0.01)
        assert not unloading.done()
    await asyncio.wait_for(unloading, 1)


async def test_an_unload_that_is_given_up_changes_nothing(loaded):
    before = loaded.current
    with loaded.hold(use("a"), None):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(loaded.unload("a", None), 0.02)
        assert loaded.current is before
        with loaded.hold(use("a"), None):
            pass


async def test_loading_blocks_neither_the_loop_nor_requests(loaded, shelf, monkeypatch):
    gate = threading.Event()
    load = shelf.load
    monkeypatch.setattr(loaded, "_load", lambda *arguments: (gate.wait(5), load(*arguments))[1])
    loading = asyncio.ensure_future(loaded.load("c", shelf.put("c", "cc")))
    await asyncio.sleep(0.01)
    with loaded.hold(use("a"), None):
        assert len(loaded.states()) == 2
    gate.set()
    await asyncio.wait_for(loading, 1)
    assert len(loaded.states()) == 3


async def test_a_load_that_is_given_up_changes_nothing(loaded, shelf, monkeypatch):
    gate, before, load = threading.Event(), loaded.current, shelf.load
    monkeypatch.setattr(loaded, "_load", lambda *arguments: (gate.wait(5), load(*arguments))[1])
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(loaded.load("c", shelf.put("c", "cc")), 0.02)
    gate.set()
    await asyncio.sleep(0.02)
    assert loaded.current is before
    assert (await loaded.load("c", Path("c"))).identity.generation == 1


async def test_changes_at_once_happen_one_after_the_other(loaded, shelf):
    for number in range(8):
        shelf.put(f"v{number}", f"content {number}")
    outcomes = await asyncio.gather(
        *(loaded.reload("a", Path(f"v{number}"), 1) for number in range(8)),
        return_exceptions=True,
    )
    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Aborted) for outcome in outcomes) == 7
    assert loaded.states()[0].identity.generation == 2


async def test_what_a_request_holds(registry, shelf):
    await registry.load("a", shelf.put("a", "aa", system_prompt="a's"))
    await registry.load("b", shelf.put("b", "bb", system_prompt="b's", targets_vision=True))
    await registry.load("c", shelf.put("c", "cc"))

    def look(**choice):
        with registry.hold(RoutingChoice(**choice), None) as held:
            return held.system_prompt, held.changes_vision

    assert look(expert="a") == ("a's", False)
    assert look(expert="b") == ("b's", True)
    assert look(expert="c") == (None, False)
    assert look(base_only=True) == (None, False)
    assert look(gates={"a": 0.4, "b": 0.6}) == ("b's", True)
    assert look(gates={"b": 0.5, "a": 0.5}) == ("a's", True), "a tie goes to the first of the set"
    assert look(gates={"a": 0.4, "b": 0.6}, masked=("b",)) == ("a's", False)
    # Layer gates do not reach the vision tower.
    layers = {0: {"b": 1.0}, 1: {"a": 1.0}}
    assert look(gates={"a": 1.0}, layers=layers) == ("a's", False)
    with registry.hold(RoutingChoice(gates={"a": 1.0}, layers=layers), None) as held:
        assert [e.identity.name for e in held.active] == ["a", "b"]
