"""Streams of text that end in a result, or in an error; never in partial text as a result.

Knows how Generate and Predict stream; knows no channel and no retry rule.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

from molora.v1 import executor_pb2, router_pb2
from molora_client import wire
from molora_client.calls import ReplyStream
from molora_client.errors import IncompleteStream
from molora_client.results import Generation, Prediction, Routed
from molora_client.transport import run_to_end

Result = TypeVar("Result")


class AsyncTextStream(Generic[Result]):
    """Pieces of an answer as they are decoded: `async for piece in stream`, then `stream.result`.

    Leaving it early inside `async with` cancels the call on the server.
    """

    def __init__(self, replies: ReplyStream[Any]) -> None:
        self._replies = replies
        self._pieces: list[str] = []
        self._token_ids: list[int] = []
        self._log_probabilities: list[float] = []
        self._completed: executor_pb2.Completed | None = None
        self._result: Result | None = None
        self._routed: Routed | None = None

    @property
    def routed(self) -> Routed | None:
        """The decision, from the first piece on; None where nothing was routed."""
        return self._routed

    @property
    def result(self) -> Result:
        """The complete answer.

        Raises:
            IncompleteStream: The stream has not been read to its end, or has not ended well.
        """
        if self._result is None:
            raise IncompleteStream(request_id=self._replies.request_id)
        return self._result

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while (reply := await self._replies.next()) is not None:
            piece = self._take(reply)
            if piece:
                return piece
        if self._completed is None:
            raise IncompleteStream(request_id=self._replies.request_id)
        self._result = self._finish(self._completed)
        raise StopAsyncIteration

    async def __aenter__(self) -> AsyncTextStream[Result]:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Gives the call up; does nothing once it has ended."""
        self._replies.cancel()

    async def read_to_end(self) -> Result:
        """Skips the pieces and returns the result.

        Raises:
            MoloraError: The call failed.
        """
        async with self:
            async for _ in self:
                pass
        return self.result

    def _take(self, reply: Any) -> str:
        event = reply.WhichOneof("event")
        if event == "delta":
            self._replies.token_seen = True
            self._pieces.append(reply.delta.text)
            self._token_ids.extend(reply.delta.token_ids)
            self._log_probabilities.extend(reply.delta.log_probabilities)
            return str(reply.delta.text)
        if event == "completed":
            self._completed = reply.completed
        return ""

    def _finish(self, completed: executor_pb2.Completed) -> Result:
        raise NotImplementedError

    def _generation(self, completed: executor_pb2.Completed) -> Generation:
        return wire.decode_generation(
            completed,
            text="".join(self._pieces),
            token_ids=tuple(self._token_ids),
            log_probabilities=tuple(self._log_probabilities),
            request_id=self._replies.request_id,
        )


class AsyncGenerationStream(AsyncTextStream[Generation]):
    """What `generate_stream` returns."""

    def _finish(self, completed: executor_pb2.Completed) -> Generation:
        return self._generation(completed)


class AsyncPredictionStream(AsyncTextStream[Prediction]):
    """What `predict_stream` returns."""

    def __init__(
        self, replies: ReplyStream[router_pb2.PredictResponse], screen_bytes: bytes | None
    ) -> None:
        super().__init__(replies)
        self._screen_bytes = screen_bytes

    def _take(self, reply: router_pb2.PredictResponse) -> str:
        if reply.WhichOneof("event") == "decision":
            self._routed = wire.decode_routed(
                reply.decision,
                reply,
                reply.route_timings,
                self._screen_bytes,
                self._replies.request_id,
            )
        return super()._take(reply)

    def _finish(self, completed: executor_pb2.Completed) -> Prediction:
        if self._routed is None:
            raise IncompleteStream(request_id=self._replies.request_id)
        return Prediction(self._routed, self._generation(completed))


class TextStream(Generic[Result]):
    """The blocking twin: `for piece in stream`, then `stream.result`."""

    def __init__(self, stream: AsyncTextStream[Result]) -> None:
        self._stream = stream

    @property
    def routed(self) -> Routed | None:
        """See `AsyncTextStream.routed`."""
        return self._stream.routed

    @property
    def result(self) -> Result:
        """See `AsyncTextStream.result`."""
        return self._stream.result

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return run_to_end(self._stream.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> TextStream[Result]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Gives the call up; does nothing once it has ended."""
        self._stream.cancel()
