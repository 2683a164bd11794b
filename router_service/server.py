"""Puts the router together and runs it. Knows every part; decides nothing about a request."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys

import grpc

from molora.v1 import router_pb2, router_pb2_grpc
from router_service.bundle import Bundle, load_bundle
from router_service.core import Manifest, ModeSetting, TemperatureSetting, Threshold
from router_service.errors import BundleError
from router_service.executor_client import ExecutorClient
from router_service.handshake import Handshake
from router_service.head import Head
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
_NOT_LOADABLE = 3


async def run(settings: RouterSettings) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: Checked settings.

    Returns:
        The exit code: 3 for a bundle that cannot be used, else that of `serve`.
    """
    try:
        bundle = load_bundle(settings.bundle)
        head = Head(bundle.head, bundle.manifest)
    except BundleError as error:
        print(f"router: {error}", file=sys.stderr, flush=True)
        return _NOT_LOADABLE
    router = assemble(settings, bundle, head)
    try:
        return await serve(
            settings=settings,
            name="router",
            register=lambda server: register(router, server),
            services=[SERVICE],
            auth_table=AUTH_TABLE,
            metrics=ServerMetrics(),
            ready=lambda health: ready(router, health),
        )
    finally:
        await router.executor.close()


def assemble(settings: RouterSettings, bundle: Bundle, head: Head) -> Router:
    """The router's parts. Call it on the event loop that serves."""
    executor = ExecutorClient(
        settings.executor, settings.max_message_bytes, settings.executor_call_max_s
    )
    return Router(
        manifest=bundle.manifest,
        version=bundle.version,
        head=head,
        policy=Policy(policy_in_force(settings, bundle.manifest)),
        handshake=Handshake(bundle.manifest, executor.info, settings.executor_check_s),
        executor=executor,
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
    return PolicyConfig(
        experts=tuple(expert.name for expert in manifest.experts),
        mode=mode,
        temperature=temperature,
        thresholds=dataclasses.replace(manifest.thresholds, **typed),
    )
