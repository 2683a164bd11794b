"""One call from request to reply: who gets it, and its attempts.

Knows the retry rule's verdicts and the transport; knows no method and no result type.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic

import grpc
from google.protobuf.message import Message

from molora_client import health
from molora_client.channel import Tls, refuse_token_over_plaintext
from molora_client.errors import MoloraError, UnavailableError
from molora_client.replicas import Replicas
from molora_client.retry import Attempts
from molora_client.status import to_molora_error
from molora_client.transport import Metadata, Replies, Transport
from molora_client.wire import Method, Reply

REQUEST_ID_KEY = "x-request-id"
HEALTH_TIMEOUT_S = 1.0


class Caller:
    """Sends requests with this client's token, each attempt under the same request id."""

    def __init__(self, transport: Transport, token: str | None, tls: Tls | None) -> None:
        self._transport = transport
        self._token = token
        self._tls = tls

    async def unary(
        self,
        replicas: Replicas,
        method: Method[Reply],
        request: Message,
        attempts: Attempts,
        request_id: str,
    ) -> Reply:
        """Sends until there is a reply or a final failure; `attempts.address` had the last word.

        Raises:
            MoloraError: The failure.
        """
        metadata = self._metadata(replicas, request_id)
        while True:
            address = attempts.address = await self._choose(replicas, attempts)
            try:
                return await self._transport.unary(
                    address, method, request, metadata, attempts.remaining_s
                )
            except grpc.RpcError as error:
                failure = to_molora_error(error, request_id)
            _note_failure(replicas, address, failure)
            await self._transport.sleep(attempts.wait_before_next(failure, request))

    def stream(
        self,
        replicas: Replicas,
        method: Method[Reply],
        request: Message,
        attempts: Attempts,
        request_id: str,
    ) -> ReplyStream[Reply]:
        """The replies of a streaming call, which is sent when the first is asked for."""
        metadata = self._metadata(replicas, request_id)

        async def send() -> Replies[Reply]:
            address = attempts.address = await self._choose(replicas, attempts)
            return self._transport.stream(address, method, request, metadata, attempts.remaining_s)

        return ReplyStream(self._transport, send, request, replicas, attempts, request_id)

    async def close(self) -> None:
        """Closes the transport's channels."""
        await self._transport.close()

    async def _choose(self, replicas: Replicas, attempts: Attempts) -> str:
        """The next address that serves; where none does, the next one, which will say why."""
        first, *others = replicas.in_turn()
        if not others:
            return first
        for address in (first, *others):
            serving = replicas.is_serving(address)
            if serving is None:
                serving = await self._serves(address, replicas.service, attempts.remaining_s)
                replicas.note(address, serving=serving)
            if serving:
                replicas.take(address)
                return address
        return first

    async def _serves(self, address: str, service: str, remaining_s: float) -> bool:
        request, timeout_s = health.check_request(service), min(HEALTH_TIMEOUT_S, remaining_s)
        try:
            reply = await self._transport.unary(address, health.CHECK, request, (), timeout_s)
        except grpc.RpcError as error:
            # Whoever has no health is taken to be well, as grpc's own balancers do.
            return error.code() is grpc.StatusCode.UNIMPLEMENTED
        return bool(reply.status == health.SERVING)

    def _metadata(self, replicas: Replicas, request_id: str) -> Metadata:
        for address in replicas.addresses:
            refuse_token_over_plaintext(address, self._token, self._tls)
        pairs: Metadata = ((REQUEST_ID_KEY, request_id),)
        return (*pairs, ("authorization", f"Bearer {self._token}")) if self._token else pairs


class ReplyStream(Generic[Reply]):
    """The replies of one streaming call; sends it again only before its first token."""

    def __init__(
        self,
        transport: Transport,
        send: Callable[[], Awaitable[Replies[Reply]]],
        request: Message,
        replicas: Replicas,
        attempts: Attempts,
        request_id: str,
    ) -> None:
        self._transport = transport
        self._send = send
        self._request = request
        self._replicas = replicas
        self._attempts = attempts
        self._replies: Replies[Reply] | None = None
        self.request_id = request_id
        self.token_seen = False

    async def next(self) -> Reply | None:
        """The next reply; None when the stream has ended well.

        Raises:
            MoloraError: The failure, if it is final or came after the first token.
        """
        while True:
            if self._replies is None:
                self._replies = await self._send()
            try:
                return await self._replies.next()
            except grpc.RpcError as error:
                failure = to_molora_error(error, self.request_id)
            _note_failure(self._replicas, self._attempts.address, failure)
            if self.token_seen:
                raise failure
            wait_s = self._attempts.wait_before_next(failure, self._request)
            self._replies = None
            await self._transport.sleep(wait_s)

    def cancel(self) -> None:
        """Gives the call up."""
        if self._replies is not None:
            self._replies.cancel()


def _note_failure(replicas: Replicas, address: str, failure: MoloraError) -> None:
    if isinstance(failure, UnavailableError):
        replicas.note(address, serving=False)
