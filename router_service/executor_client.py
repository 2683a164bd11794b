"""The router's calls to the executor: deadlines, request ids, and its errors passed on.

Knows calls and statuses; knows no gate and no digest. It retries nothing: the caller of the
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
from service_chassis.upstream import Upstream, UpstreamFiles

# Kept of the caller's deadline, so that the router's own status still reaches it.
_MARGIN_S = 0.05
_MARGIN_SHARE = 0.1
_INFO_TIMEOUT_S = 5.0
_BY_CODE = {kind.code: kind for kind in ServiceError.__subclasses__()}
# What grpc says, in no other form than text, where it does not trust the certificate it is shown.
_UNTRUSTED = ("handshake failed", "verification check failed")
# What is meant for the router must not look to its callers as if it were meant for them.
_REFUSED = {
    "UNAUTHENTICATED": "The executor does not accept the router's token; put one that it knows "
    "into the file of --executor-token-file.",
    "PERMISSION_DENIED": "The router's token may not infer; put one with the role infer into the "
    "file of --executor-token-file.",
    "UNIMPLEMENTED": "The server at --executor is no executor; correct the address.",
}


class ExecutorClient:
    """Calls to one executor. Make it on the event loop that uses it.

    Args:
        address: host:port.
        files: How to trust the executor, and how to be trusted by it.
        max_message_bytes: Largest request and response.
        call_max_s: Longest call, in seconds; a caller's shorter deadline wins.

    Raises:
        OSError: A file cannot be used now.
        ValueError: Likewise.
    """

    def __init__(
        self, address: str, files: UpstreamFiles, max_message_bytes: int, call_max_s: float
    ) -> None:
        self._call_max_s = call_max_s
        self._executor = Upstream(
            address,
            files,
            [
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
            executor_pb2_grpc.ExecutorServiceStub,
        )

    async def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        await self._executor.close()

    async def info(self) -> ExecutorInfo:
        """What the executor runs.

        Raises:
            ServiceError: See `passed_on`.
        """
        try:
            async with self._executor.stub() as stub:
                reply = await stub.GetServerInfo(
                    executor_pb2.GetServerInfoRequest(),
                    timeout=_INFO_TIMEOUT_S,
                    metadata=self._executor.metadata(),
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
            async with self._executor.stub() as stub:
                reply = await stub.ExtractFeatures(
                    request,
                    timeout=self._timeout_s(remaining_s),
                    metadata=self._metadata(request_id),
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
        completed = False
        async with self._executor.stub() as stub:
            call = stub.Generate(
                request,
                timeout=self._timeout_s(remaining_s),
                metadata=self._metadata(request.request_id),
            )
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

    def _metadata(self, request_id: str) -> tuple[tuple[str, str], ...]:
        return ((REQUEST_ID_KEY, request_id), *self._executor.metadata())

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
        FailedPrecondition where the two servers do not trust each other. Else the executor's own
        error if it stated a reason, or one with a constant text, because the library's texts hold
        addresses.
    """
    code = error.code().name
    if code in _REFUSED:
        return FailedPrecondition("EXECUTOR_REFUSED", _REFUSED[code], code=code)
    stated = _stated_error(error, _BY_CODE.get(code))
    if stated is not None:
        return stated
    if code == "DEADLINE_EXCEEDED":
        return DeadlineExceeded(
            "EXECUTOR_TIMEOUT", "The executor did not answer in time; allow the call more time."
        )
    if any(sign in (error.details() or "").lower() for sign in _UNTRUSTED):
        return FailedPrecondition(
            "EXECUTOR_UNTRUSTED",
            "The TLS handshake with the executor fails; give the CA of its certificate by "
            "--executor-tls-ca, and a name in it by --executor.",
        )
    if code in ("UNAVAILABLE", "CANCELLED"):
        return Unavailable(
            "EXECUTOR_UNREACHABLE", "The executor does not answer; retry once it is back."
        )
    if code == "RESOURCE_EXHAUSTED":
        return ResourceExhausted(
            "MESSAGE_TOO_LARGE", "The executor accepts no message of this size; send a smaller one."
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
