"""The router's calls to the executor: deadlines, request ids, and its errors passed on.

Knows channels and statuses; knows no gate and no digest. It retries nothing: the caller of the
router owns the retry budget, and two layers of retries multiply.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from molora.v1 import executor_pb2, executor_pb2_grpc, types_pb2
from router_service import wire
from router_service.core import ExecutorInfo, Features
from router_service.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    ResourceExhausted,
    ServiceError,
    Unavailable,
)
from service_chassis.interceptor import REQUEST_ID_KEY
from service_chassis.status import DETAILS_KEY, DOMAIN

# Kept of the caller's deadline, so that the router's own status still reaches it.
_MARGIN_S = 0.05
_MARGIN_SHARE = 0.1
_INFO_TIMEOUT_S = 5.0
_BY_CODE = {kind.code: kind for kind in ServiceError.__subclasses__()}


class ExecutorClient:
    """One channel to one executor. Make it on the event loop that uses it.

    Args:
        address: host:port.
        max_message_bytes: Largest request and response.
        call_max_s: Longest call, in seconds; a caller's shorter deadline wins.
    """

    def __init__(self, address: str, max_message_bytes: int, call_max_s: float) -> None:
        self._call_max_s = call_max_s
        self._channel = grpc.aio.insecure_channel(
            address,
            options=[
                ("grpc.max_send_message_length", max_message_bytes),
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.enable_retries", 0),
                # Screens go to the executor and to nobody in between.
                ("grpc.enable_http_proxy", 0),
                # A peer that vanished without a word is noticed within 30 s.
                ("grpc.keepalive_time_ms", 20_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 2_000),
            ],
        )
        self._stub = executor_pb2_grpc.ExecutorServiceStub(self._channel)

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        await self._channel.close()

    async def info(self) -> ExecutorInfo:
        """What the executor runs.

        Raises:
            ServiceError: See `passed_on`.
        """
        try:
            reply = await self._stub.GetServerInfo(
                executor_pb2.GetServerInfoRequest(), timeout=_INFO_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            raise passed_on(error) from error
        return wire.read_info(reply)

    async def features(
        self,
        prompt: types_pb2.Prompt,
        screen: types_pb2.Screen,
        request_id: str,
        remaining_s: float | None,
    ) -> Features:
        """Extract the features of a prompt and screen; the executor keeps the screen.

        Args:
            prompt: As the caller sent it.
            screen: As the caller sent it.
            request_id: The caller's.
            remaining_s: Time until the caller's deadline, in seconds; None if it has none.

        Raises:
            ServiceError: See `passed_on`.
        """
        request = executor_pb2.ExtractFeaturesRequest(
            prompt=prompt, screen=screen, request_id=request_id
        )
        try:
            reply = await self._stub.ExtractFeatures(
                request,
                timeout=self._timeout_s(remaining_s),
                metadata=((REQUEST_ID_KEY, request_id),),
            )
        except grpc.aio.AioRpcError as error:
            raise passed_on(error) from error
        return wire.read_features(reply)

    async def generate(
        self, request: executor_pb2.GenerateRequest, remaining_s: float | None
    ) -> AsyncGenerator[executor_pb2.GenerateResponse, None]:
        """Relay a generation; its last message is `completed`.

        Args:
            request: The whole request, with its `request_id`.
            remaining_s: Time until the caller's deadline, in seconds; None if it has none.

        Raises:
            ServiceError: See `passed_on`.
            Internal: INCOMPLETE_STREAM, the executor ended it without `completed`.
        """
        call = self._stub.Generate(
            request,
            timeout=self._timeout_s(remaining_s),
            metadata=((REQUEST_ID_KEY, request.request_id),),
        )
        completed = False
        try:
            async for event in call:
                completed = event.HasField("completed")
                yield event
        except grpc.aio.AioRpcError as error:
            raise passed_on(error) from error
        finally:
            # Where the client left, the executor must not go on alone.
            call.cancel()
        if not completed:
            raise Internal("INCOMPLETE_STREAM", "The executor ended its answer before its end.")

    def _timeout_s(self, remaining_s: float | None) -> float:
        if remaining_s is None:
            return self._call_max_s
        left_s = remaining_s - min(_MARGIN_S, remaining_s * _MARGIN_SHARE)
        if left_s <= 0:
            raise DeadlineExceeded(
                "DEADLINE_PASSED", "The deadline has passed; allow the call more time."
            )
        return min(left_s, self._call_max_s)


def passed_on(error: grpc.aio.AioRpcError) -> ServiceError:
    """The executor's status as this server's error.

    Args:
        error: What a call to the executor raised.

    Returns:
        The executor's own error if it stated a reason. Else one with a constant text, because the
        library's texts hold addresses.
    """
    code = error.code().name
    stated = _stated_error(error, _BY_CODE.get(code))
    if stated is not None:
        return stated
    if code == "DEADLINE_EXCEEDED":
        return DeadlineExceeded(
            "EXECUTOR_TIMEOUT", "The executor did not answer in time; allow the call more time."
        )
    if code in ("UNAVAILABLE", "CANCELLED"):
        return Unavailable(
            "EXECUTOR_UNREACHABLE", "The executor does not answer; retry once it is back."
        )
    if code == "RESOURCE_EXHAUSTED":
        return ResourceExhausted(
            "MESSAGE_TOO_LARGE", "The executor accepts no message of this size; send a smaller one."
        )
    if code in ("UNIMPLEMENTED", "UNAUTHENTICATED", "PERMISSION_DENIED"):
        return FailedPrecondition(
            "EXECUTOR_REFUSED", "The executor refuses the router; check its address and the roles."
        )
    return Internal("EXECUTOR_FAILED", "The executor failed; its log has this request's id.")


def _stated_error(
    error: grpc.aio.AioRpcError, kind: type[ServiceError] | None
) -> ServiceError | None:
    """The error that the executor's interceptor wrote into the status details, if any."""
    blob = dict(error.trailing_metadata()).get(DETAILS_KEY)
    if kind is None or not isinstance(blob, bytes):
        return None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry_after_s = None
    try:
        for detail in status_pb2.Status.FromString(blob).details:
            detail.Unpack(info)
            if detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    except DecodeError:
        return None
    if info.domain != DOMAIN or not info.reason:
        return None
    stated = kind(info.reason, error.details() or "", retry_after_s=retry_after_s)
    stated.metadata = dict(info.metadata)
    return stated
