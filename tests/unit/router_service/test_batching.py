"""Requests of one moment are one run of the head, and fail one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from router_service.batching import MAX_ROWS, BatchedHead
from router_service.core import Features, HeadOutput
from router_service.errors import Internal


class StubHead:
    """Answers with the feature it got; a negative one is a bad request."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.broken = False

    def judge(self, batch: Sequence[Features]) -> list[HeadOutput | Internal]:
        self.sizes.append(len(batch))
        if self.broken:
            raise MemoryError
        return [
            Internal("BAD_FEATURES", "Bad.") if each.text[0] < 0 else HeadOutput(each.text)
            for each in batch
        ]


def features(value: float) -> Features:
    return Features(np.array([value], np.float32), np.zeros(1, np.float32), "", "", "", "")


@pytest.fixture
def head() -> StubHead:
    return StubHead()


@pytest.fixture
def batched(head: Any) -> BatchedHead:
    return BatchedHead(head)


async def test_what_comes_together_runs_together(head: StubHead, batched: BatchedHead) -> None:
    outputs = await asyncio.gather(*(batched.judge(features(n)) for n in range(5)))
    assert [float(output.logits[0]) for output in outputs] == [0, 1, 2, 3, 4]
    assert head.sizes == [5]


async def test_nobody_waits_for_company(head: StubHead, batched: BatchedHead) -> None:
    for n in range(3):
        await batched.judge(features(n))
    assert head.sizes == [1, 1, 1]


async def test_more_than_a_batch_is_several(head: StubHead, batched: BatchedHead) -> None:
    count = 2 * MAX_ROWS + 3
    outputs = await asyncio.gather(*(batched.judge(features(n)) for n in range(count)))
    assert [float(output.logits[0]) for output in outputs] == list(range(count))
    assert head.sizes == [MAX_ROWS, MAX_ROWS, 3]


async def test_a_bad_request_fails_alone(head: StubHead, batched: BatchedHead) -> None:
    calls = (batched.judge(features(n)) for n in (1, -1, 2))
    one, bad, two = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(bad, Internal)
    assert isinstance(one, HeadOutput)
    assert isinstance(two, HeadOutput)
    assert head.sizes == [3]


async def test_a_caller_that_left_is_not_run(head: StubHead, batched: BatchedHead) -> None:
    stays, leaves = (asyncio.ensure_future(batched.judge(features(n))) for n in (1, 2))
    await asyncio.sleep(0)  # both wait now
    leaves.cancel()
    assert float((await stays).logits[0]) == 1
    assert head.sizes == [1]
    assert leaves.cancelled()


async def test_a_head_that_breaks_fails_the_batch_and_not_the_next(
    head: StubHead, batched: BatchedHead
) -> None:
    head.broken = True
    calls = (batched.judge(features(n)) for n in range(2))
    failed = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error) for error in failed] == [MemoryError, MemoryError]
    head.broken = False
    await batched.judge(features(1))
    assert head.sizes == [2, 1]
