"""Puts the requests of one moment through the head together.

Knows the event loop; knows neither what a feature means nor what is done with a logit.
"""

from __future__ import annotations

import asyncio

from router_service.core import Features, HeadOutput
from router_service.errors import Internal
from router_service.head import Head

# More would hold up the loop: 32 rows take about 2.5 ms at an 8B model's sizes.
MAX_ROWS = 32


class BatchedHead:
    """Runs the head once for all requests that wait when the loop comes round.

    Nobody waits for others to come: what one turn of the loop brought in is a batch, and what comes
    while it runs is the next. A thread would cost a lone request about as much as the head itself.

    Args:
        head: Called on the event loop, by this object alone.
    """

    def __init__(self, head: Head) -> None:
        self._head = head
        self._waiting: list[tuple[Features, asyncio.Future[HeadOutput]]] = []

    async def judge(self, features: Features) -> HeadOutput:
        """What the head says about one request.

        Args:
            features: What the executor extracted for it.

        Raises:
            Internal: See `Head.judge`; the other requests of the batch are not affected.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[HeadOutput] = loop.create_future()
        self._waiting.append((features, answer))
        if len(self._waiting) == 1:
            loop.call_soon(self._run)
        return await answer

    def _run(self) -> None:
        batch, self._waiting = self._waiting[:MAX_ROWS], self._waiting[MAX_ROWS:]
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._run)
        # A caller that left has cancelled its future.
        batch = [(features, answer) for features, answer in batch if not answer.done()]
        try:
            judged = self._head.judge([features for features, _ in batch])
        except Exception as error:
            for _, answer in batch:
                answer.set_exception(error)
            return
        for (_, answer), output in zip(batch, judged, strict=True):
            if isinstance(output, Internal):
                answer.set_exception(output)
            else:
                answer.set_result(output)
