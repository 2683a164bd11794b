"""A router and an executor that speak the real contract and say what a test tells them to.

Knows no model. Every call is recorded; a scripted behaviour is used once, in order, and then the
method answers as a healthy server would.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2, message_factory
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection

from molora.v1 import admin_pb2, executor_pb2, router_pb2, types_pb2

SERVICES = (
    router_pb2.DESCRIPTOR.services_by_name["RouterService"],
    executor_pb2.DESCRIPTOR.services_by_name["ExecutorService"],
    admin_pb2.DESCRIPTOR.services_by_name["ExpertAdminService"],
)
SCREEN = b"\x89PNG-of-the-test"
ANSWER = '<tool_call>\n{"name": "computer_use", "arguments": {}}\n</tool_call>'
EXPERT_SET = "e" * 64


@dataclass(frozen=True)
class Fail:
    """End the call with this status, after these messages."""

    code: grpc.StatusCode
    reason: str = ""
    after: tuple[Any, ...] = ()
    retry_after_s: float | None = None
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """End the call well, after a while and these messages."""

    messages: tuple[Any, ...]
    delay_s: float = 0.0


@dataclass(frozen=True)
class Call:
    """One call as the server saw it."""

    method: str
    request: Any
    metadata: dict[str, str]
    time_remaining_s: float


class StubServices:
    """All three services on one port; `script["Route"]` is what Route does next."""

    def __init__(self) -> None:
        self.script: dict[str, list[Fail | Reply]] = defaultdict(list)
        self.calls: list[Call] = []
        self.address = ""
        # What health says; None: there is no health service.
        self.serving: bool | None = None
        self.health_checks = 0

    def seen(self, method: str) -> list[Call]:
        return [call for call in self.calls if call.method == method]

    def handle(self, method: Any, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        metadata = dict(context.invocation_metadata())
        self.calls.append(Call(method.name, request, metadata, context.time_remaining()))
        script = self.script[method.name]
        behaviour = script.pop(0) if script else Reply(tuple(self.healthy(method.name, request)))
        if isinstance(behaviour, Reply):
            time.sleep(behaviour.delay_s)
            yield from behaviour.messages
            return
        yield from behaviour.after
        context.set_trailing_metadata((("grpc-status-details-bin", rich_status(behaviour)),))
        context.abort(behaviour.code, "constant text of the server")

    def healthy(self, method: str, request: Any) -> Iterator[Any]:
        if method == "Generate":
            yield from generate_events(request)
        elif method == "Predict":
            yield from predict_events(self.address)
        else:
            yield UNARY[method](self.address)


def rich_status(failure: Fail) -> bytes:
    """The details as any gRPC server packs them, made with googleapis' own classes."""
    details = [
        error_details_pb2.ErrorInfo(
            reason=failure.reason, domain="molora", metadata=failure.metadata
        )
    ]
    if failure.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(failure.retry_after_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=failure.code.value[0], details=packed).SerializeToString()


def decision(**changes: Any) -> types_pb2.Decision:
    given = {
        "gates": types_pb2.Gates(weights={"calendar": 1.0}),
        "probabilities": {"calendar": 0.75, "claim-window": 0.25},
        "reason": types_pb2.DECISION_REASON_ROUTER,
        "confidence": 0.75,
        "entropy": 0.5,
        "expert_set": EXPERT_SET,
        "router_version": "r1",
    }
    return types_pb2.Decision(**{**given, **changes})


def deltas() -> list[executor_pb2.Delta]:
    middle = len(ANSWER) // 2
    pieces = (ANSWER[:middle], "", ANSWER[middle:])
    return [executor_pb2.Delta(text=text, token_ids=[i]) for i, text in enumerate(pieces)]


def completed(**applied: Any) -> executor_pb2.Completed:
    return executor_pb2.Completed(
        finish_reason=executor_pb2.FINISH_REASON_STOP,
        usage=types_pb2.Usage(prompt_tokens=20, image_tokens=12, completion_tokens=3),
        applied=types_pb2.Applied(expert_set=EXPERT_SET, **applied),
        timings=executor_pb2.GenerateTimings(total_ms=4.0),
    )


def generate_events(request: executor_pb2.GenerateRequest) -> Iterator[Any]:
    yield from (executor_pb2.GenerateResponse(delta=delta) for delta in deltas())
    gates = request.gates if request.HasField("gates") else None
    if request.expert:
        gates = types_pb2.Gates(weights={request.expert: 1.0})
    yield executor_pb2.GenerateResponse(
        completed=completed(gates=gates, base_only=request.base_only, vision_reused=True)
    )


def predict_events(address: str) -> Iterator[Any]:
    yield router_pb2.PredictResponse(
        decision=decision(),
        context_id="ctx-1",
        executor=address,
        route_timings=router_pb2.RouteTimings(total_ms=7.0),
    )
    yield from (router_pb2.PredictResponse(delta=delta) for delta in deltas())
    yield router_pb2.PredictResponse(completed=completed(gates=decision().gates))


def expert(name: str, **changes: Any) -> executor_pb2.Expert:
    given = {"digest": "d" * 64, "generation": 1, "rank": 8, "targets_vision": True}
    return executor_pb2.Expert(name=name, **{**given, **changes})


def _identity(name: str) -> types_pb2.ExpertIdentity:
    return types_pb2.ExpertIdentity(name=name, digest="d" * 64, generation=1)


UNARY: dict[str, Callable[[str], Any]] = {
    "Route": lambda address: router_pb2.RouteResponse(
        decision=decision(),
        context_id="ctx-1",
        executor=address,
        timings=router_pb2.RouteTimings(features_ms=5.0, head_ms=1.0, total_ms=7.0),
    ),
    "GetRouterInfo": lambda address: router_pb2.GetRouterInfoResponse(
        router_version="r1",
        experts=[_identity("calendar"), _identity("claim-window")],
        mode=types_pb2.ROUTING_MODE_TOP1,
        thresholds={"veto": 0.5},
        threshold_reasons={"veto": "typed", "abstention": "never"},
        abstention=types_pb2.ABSTENTION_OUTCOME_ERROR,
        agent=router_pb2.AgentModel(weight=1.0, reliability=0.75, ceiling=0.875, reason="measured"),
        serving=True,
        executor=address,
    ),
    "ExtractFeatures": lambda _: executor_pb2.ExtractFeaturesResponse(
        context_id="ctx-2", text_features=[1.0, 2.0], vision_features=[3.0], feature_spec="f"
    ),
    "Score": lambda _: executor_pb2.ScoreResponse(
        token_ids=[4, 5], log_probabilities=[-0.5, -1.5], usage=types_pb2.Usage(prompt_tokens=9)
    ),
    "ListExperts": lambda _: executor_pb2.ListExpertsResponse(
        experts=[expert("calendar", label=0, in_use=2), expert("claim-window")],
        expert_set=EXPERT_SET,
    ),
    "GetServerInfo": lambda _: executor_pb2.GetServerInfoResponse(
        model="m",
        feature_spec=executor_pb2.FeatureSpec(digest="f", text_dim=2, vision_dim=1),
        experts=[_identity("calendar")],
        backends={"gated": "stacked"},
        limits=executor_pb2.Limits(queue_length=8),
    ),
    "LoadExpert": lambda _: admin_pb2.LoadExpertResponse(expert=expert("new"), expert_set="2"),
    "UnloadExpert": lambda _: admin_pb2.UnloadExpertResponse(expert=expert("old"), expert_set="0"),
    "ReloadExpert": lambda _: admin_pb2.ReloadExpertResponse(
        expert=expert("calendar", generation=2), expert_set="3"
    ),
}


def _handler(stub: StubServices, method: Any) -> grpc.RpcMethodHandler:
    request, reply = (
        message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type)
    )

    def stream(message: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        return stub.handle(method, message, context)

    def unary(message: Any, context: grpc.ServicerContext) -> Any:
        return next(itertools.chain(stub.handle(method, message, context)))

    make, behaviour = (
        (grpc.unary_stream_rpc_method_handler, stream)
        if method.server_streaming
        else (grpc.unary_unary_rpc_method_handler, unary)
    )
    return make(behaviour, request.FromString, reply.SerializeToString)


def _health(stub: StubServices) -> grpc.GenericRpcHandler:
    """Bytes in, bytes out, as grpcio-health-checking is not everywhere that the SDK is."""

    def check(request: bytes, context: grpc.ServicerContext) -> bytes:
        stub.health_checks += 1
        if stub.serving is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no health here")
        assert request.partition(b"molora.v1.")[2] in (b"RouterService", b"ExecutorService")
        return b"\x08\x01" if stub.serving else b"\x08\x02"

    handlers = {"Check": grpc.unary_unary_rpc_method_handler(check)}
    return grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers)


@contextlib.contextmanager
def running_stub(credentials: grpc.ServerCredentials | None = None) -> Iterator[StubServices]:
    """A stub on a free port of loopback, in plaintext without credentials."""
    stub = StubServices()
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    for service in SERVICES:
        handlers = {method.name: _handler(stub, method) for method in service.methods}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service.full_name, handlers),)
        )
    server.add_generic_rpc_handlers((_health(stub),))
    names = [service.full_name for service in SERVICES]
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
    port = (
        server.add_secure_port("127.0.0.1:0", credentials)
        if credentials
        else server.add_insecure_port("127.0.0.1:0")
    )
    stub.address = f"127.0.0.1:{port}"
    server.start()
    try:
        yield stub
    finally:
        server.stop(None).wait()
