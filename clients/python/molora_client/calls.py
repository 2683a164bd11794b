"""One call from request to reply, attempts included.

Knows the retry rule's verdicts and the transport; knows no method and no result type.
"""

from __future__ import annotations

from typing import Any, Generic

import grpc
from google.protobuf.message import Message

from molora_client.channel import Tls, refuse_token_over_plaintext
from molora_client.retry import Attempts
from molora_client.status import to_molora_error
from molora_client.transport import Metadata, Replies, Transport
from molora_client.wire import Method, Reply

REQUEST_ID_KEY = "x-request-id"


class Caller:
    """Sends requests with this client's token, each attempt under the same request id."""

    def __init__(self, transport: Transport, token: str | None, tls: Tls | None) -> None:
        self._transport = transport
        self._token = token
        self._tls = tls

    async def unary(
        self,
        address: str,
        method: Method[Reply],
        request: Message,
        attempts: Attempts,
        request_id: str,
    ) -> Reply:
        """Sends until there is a reply or a final failure.

        Raises:
            MoloraError: The failure.
        """
        metadata = self._metadata(address, request_id)
        while True:
            try:
                return await self._transport.unary(
                    address, method, request, metadata, attempts.remaining_s
                )
            except grpc.RpcError as error:
                failure = to_molora_error(error, request_id)
            await self._transport.sleep(attempts.wait_before_next(failure, request))

    def stream(
        self,
        address: str,
        method: Method[Reply],
        request: Message,
        attempts: Attempts,
        request_id: str,
    ) -> ReplyStream[Reply]:
        """The replies of a streaming call, which is sent when the first is asked for."""
        metadata = self._metadata(address, request_id)

        def send() -> Replies[Reply]:
            return self._transport.stream(address, method, request, metadata, attempts.remaining_s)

        return ReplyStream(self._transport, send, request, attempts, request_id)

    async def close(self) -> None:
        """Closes the transport's channels."""
        await self._transport.close()

    def _metadata(self, address: str, request_id: str) -> Metadata:
        refuse_token_over_plaintext(address, self._token, self._tls)
        pairs: Metadata = ((REQUEST_ID_KEY, request_id),)
        return (*pairs, ("authorization", f"Bearer {self._token}")) if self._token else pairs


class ReplyStream(Generic[Reply]):
    """The replies of one streaming call; sends it again only before its first token."""

    def __init__(
        self,
        transport: Transport,
        send: Any,
        request: Message,
        attempts: Attempts,
        request_id: str,
    ) -> None:
        self._transport = transport
        self._send = send
        self._request = request
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
                self._replies = self._send()
            try:
                return await self._replies.next()
            except grpc.RpcError as error:
                failure = to_molora_error(error, self.request_id)
            if self.token_seen:
                raise failure
            wait_s = self._attempts.wait_before_next(failure, self._request)
            self._replies = None
            await self._transport.sleep(wait_s)

    def cancel(self) -> None:
        """Gives the call up."""
        if self._replies is not None:
            self._replies.cancel()
