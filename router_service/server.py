"""Puts the router together and runs it. Knows every part; decides nothing about a request."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys

import grpc

from molora.v1 import router_pb2, router_pb2_grpc
from router_service.audit import AuditLog
from router_service.batching import BatchedHead
from router_service.bundle import Bundle, load_bundle
from router_service.errors import BundleError
from router_service.executor_client import ExecutorClient
from router_service.handshake import Handshake
from router_service.head import Head
from router_service.ledger import Ledger
from router_service.manifest import (
    AbstentionRule,
    Manifest,
    ModeSetting,
    TemperatureSetting,
    Threshold,
)
from router_service.metrics import RouterMetrics
from router_service.policy import Policy, PolicyConfig
from router_service.servicer import Router, RouterServicer
from router_service.settings import RouterSettings
from service_chassis.auth import Role
from service_chassis.health import Health
from service_chassis.metrics import ServerMetrics
from service_chassis.server import serve

SERVICE: str = router_pb2.DESCRIPTOR.services_by_name["RouterService"].full_name
AUTH_TABLE = {
    f"/{SERVICE}/Route": Role.INFER,
    f"/{SERVICE}/Predict": Role.INFER,
    f"/{SERVICE}/GetRouterInfo": Role.INFER,
}
_WRONG_SETTINGS = 2
_NOT_LOADABLE = 3


async def run(settings: RouterSettings) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: Checked settings.

    Returns:
        The exit code: 3 for a bundle that cannot be used, 2 for an audit file that cannot be
        written, else that of `serve`.
    """
    metrics = ServerMetrics()
    try:
        bundle = load_bundle(settings.bundle)
        router = assemble(settings, bundle, Head(bundle.head, bundle.manifest), metrics)
    except BundleError as error:
        print(f"router: {error}", file=sys.stderr, flush=True)
        return _NOT_LOADABLE
    except OSError as error:
        problem = f"--audit-file {settings.audit_file} cannot be written ({error.strerror})"
        print(f"router: {problem}; name a file that can", file=sys.stderr, flush=True)
        return _WRONG_SETTINGS
    try:
        return await serve(
            settings=settings,
            name="router",
            register=lambda server: register(router, server),
            services=[SERVICE],
            auth_table=AUTH_TABLE,
            metrics=metrics,
            ready=lambda health: ready(router, health),
        )
    finally:
        await router.executor.close()
        router.ledger.close()


def assemble(
    settings: RouterSettings, bundle: Bundle, head: Head, metrics: ServerMetrics
) -> Router:
    """The router's parts. Call it on the event loop that serves.

    Raises:
        BundleError: A flag asks for what the bundle's head does not measure.
        OSError: The audit file cannot be written.
    """
    if settings.abstention_distance is not None and not head.measures_distance:
        raise BundleError(
            "--abstention-distance needs a head that gives `distance`; leave it out, or export "
            "the bundle again"
        )
    policy = Policy(policy_in_force(settings, bundle.manifest))
    executor = ExecutorClient(
        settings.executor,
        settings.executor_files,
        settings.max_message_bytes,
        settings.executor_call_max_s,
    )
    counts = RouterMetrics(metrics.registry, policy.config.experts)
    audit = AuditLog(settings.audit_file, counts.audit_held) if settings.audit_file else None
    return Router(
        manifest=bundle.manifest,
        version=bundle.version,
        head=BatchedHead(head),
        policy=policy,
        handshake=Handshake(bundle.manifest, executor.info, settings.executor_check_s),
        executor=executor,
        ledger=Ledger(bundle.manifest, bundle.version, counts, audit),
        executor_address=settings.executor,
        software_version=importlib.metadata.version("molora"),
    )


def register(router: Router, server: grpc.aio.Server) -> None:
    """Add the router's servicer to a server."""
    router_pb2_grpc.add_RouterServiceServicer_to_server(RouterServicer(router), server)


async def ready(router: Router, health: Health) -> None:
    """Keep health at what the handshake says, until cancelled."""
    await router.handshake.run(health.set_serving)


def policy_in_force(settings: RouterSettings, manifest: Manifest) -> PolicyConfig:
    """The bundle's policy with the operator's flags over it; each value says where it is from."""
    mode, temperature = manifest.mode, manifest.temperature
    if settings.routing_mode is not None:
        mode = ModeSetting(settings.routing_mode, "set by --routing-mode")
    if settings.temperature is not None:
        temperature = TemperatureSetting(settings.temperature, "set by --temperature")
    typed = {
        name: Threshold(value, "typed", f"set by --{name.replace('_', '-')}")
        for name in ("agent_fast_path", "agent_accept", "agent_veto")
        if (value := getattr(settings, name)) is not None
    }
    abstention = manifest.abstention
    if settings.abstention_distance is not None:
        why = "set by --abstention-distance"
        abstention = AbstentionRule(settings.abstention_distance, "typed", why)
    return PolicyConfig(
        experts=tuple(expert.name for expert in manifest.experts),
        mode=mode,
        temperature=temperature,
        thresholds=dataclasses.replace(manifest.thresholds, **typed),
        agent=manifest.agent,
        abstention=abstention,
        outcome=settings.on_abstention,
    )
