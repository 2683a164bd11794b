"""The context cache alone, with entries that are only a size."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from executor_service.engine.contexts import ContextCache
from service_chassis.errors import NotFound, ResourceExhausted


@dataclass
class Entry:
    nbytes: int


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def cache(clock) -> ContextCache[Entry]:
    return ContextCache(max_bytes=100, ttl_s=60, clock=clock)


def expired(cache: ContextCache[Entry], context_id: str) -> bool:
    try:
        cache.get(context_id)
    except NotFound as error:
        return error.reason == "CONTEXT_EXPIRED"
    return False


def test_an_id_finds_its_entry_and_cannot_be_guessed(cache):
    entries = [Entry(1) for _ in range(50)]
    ids = [cache.put(entry) for entry in entries]
    assert all(cache.get(i) is entry for i, entry in zip(ids, entries, strict=True))
    assert len(set(ids)) == 50
    assert min(len(i) for i in ids) >= 32, "24 random bytes in base64"
    assert expired(cache, "")
    assert expired(cache, ids[0][:-1])


def test_the_least_recently_used_goes_first(cache):
    a, b = cache.put(Entry(40)), cache.put(Entry(40))
    cache.get(a)
    c = cache.put(Entry(40))
    assert [expired(cache, i) for i in (a, b, c)] == [False, True, False]
    assert cache.held_bytes == 80


def test_a_big_entry_evicts_as_many_as_it_needs(cache):
    ids = [cache.put(Entry(30)) for _ in range(3)]
    big = cache.put(Entry(95))
    assert all(expired(cache, i) for i in ids)
    assert not expired(cache, big)


def test_an_entry_beyond_the_whole_cache_is_refused_and_evicts_nobody(cache):
    kept = cache.put(Entry(100))
    with pytest.raises(ResourceExhausted):
        cache.put(Entry(101))
    assert not expired(cache, kept)


def test_entries_end_at_their_time_even_if_used(cache, clock):
    context_id = cache.put(Entry(10))
    clock.now_s = 59.9
    assert not expired(cache, context_id)
    clock.now_s = 60.0
    assert expired(cache, context_id)
    assert (len(cache), cache.held_bytes) == (0, 0)


def test_sweep_drops_what_expired_and_nothing_else(cache, clock):
    cache.put(Entry(10))
    clock.now_s = 30
    later = cache.put(Entry(20))
    clock.now_s = 70
    cache.sweep()
    assert (len(cache), cache.held_bytes) == (1, 20)
    assert not expired(cache, later)
