"""The context cache alone, with entries that are only a size."""

from __future__ import annotations

import itertools
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


_numbers = itertools.count()


def put(cache: ContextCache[Entry], entry: Entry) -> str:
    """Keep an entry as that of a content that nothing else has."""
    return cache.put(str(next(_numbers)).encode(), entry)


def test_an_id_finds_its_entry_and_cannot_be_guessed(cache):
    entries = [Entry(1) for _ in range(50)]
    ids = [put(cache, entry) for entry in entries]
    assert all(cache.get(i) is entry for i, entry in zip(ids, entries, strict=True))
    assert len(set(ids)) == 50
    assert min(len(i) for i in ids) >= 32, "24 random bytes in base64"
    assert expired(cache, "")
    assert expired(cache, ids[0][:-1])


def test_the_least_recently_used_goes_first(cache):
    a, b = put(cache, Entry(40)), put(cache, Entry(40))
    cache.get(a)
    c = put(cache, Entry(40))
    assert [expired(cache, i) for i in (a, b, c)] == [False, True, False]
    assert cache.held_bytes == 80


def test_a_big_entry_evicts_as_many_as_it_needs(cache):
    ids = [put(cache, Entry(30)) for _ in range(3)]
    big = put(cache, Entry(95))
    assert all(expired(cache, i) for i in ids)
    assert not expired(cache, big)


def test_an_entry_beyond_the_whole_cache_is_refused_and_evicts_nobody(cache):
    kept = put(cache, Entry(100))
    with pytest.raises(ResourceExhausted):
        put(cache, Entry(101))
    assert not expired(cache, kept)


def test_entries_end_at_their_time_even_if_used(cache, clock):
    context_id = put(cache, Entry(10))
    clock.now_s = 59.9
    assert not expired(cache, context_id)
    clock.now_s = 60.0
    assert expired(cache, context_id)
    assert (len(cache), cache.held_bytes) == (0, 0)


def test_sweep_drops_what_expired_and_nothing_else(cache, clock):
    put(cache, Entry(10))
    clock.now_s = 30
    later = put(cache, Entry(20))
    clock.now_s = 70
    cache.sweep()
    assert (len(cache), cache.held_bytes) == (1, 20)
    assert not expired(cache, later)


def test_a_content_is_kept_once_and_found_without_an_id(cache):
    entry = Entry(40)
    ids = [cache.put(b"screen", entry) for _ in range(3)]
    assert len(set(ids)) == 3
    assert (len(cache), cache.held_bytes) == (1, 40)
    assert cache.find(b"screen") is entry
    assert all(cache.get(context_id) is entry for context_id in ids)
    assert cache.find(b"other") is None


def test_a_content_lives_as_long_as_the_last_of_its_ids(cache, clock):
    first = cache.put(b"screen", Entry(40))
    clock.now_s = 30
    second = cache.put(b"screen", Entry(40))
    clock.now_s = 70
    assert expired(cache, first)
    assert not expired(cache, second)
    clock.now_s = 90
    assert cache.find(b"screen") is None
    assert cache.held_bytes == 0


def test_an_id_does_not_come_back_with_its_content(cache):
    context_id = cache.put(b"screen", Entry(60))
    put(cache, Entry(60))
    assert expired(cache, context_id)
    cache.put(b"screen", Entry(30))
    assert expired(cache, context_id), "the first entry was evicted; its id ended with it"
