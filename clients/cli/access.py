"""Checks of the router's way to its executor: TLS, token, whether it is let in and to whom.

Knows what the router is given for it, and asks as the router does; starts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import grpc

from clients.cli.credentials import check_certificate, check_private
from clients.cli.exits import FIRST_GRPC_EXIT_CODE
from clients.cli.findings import NOT_LOADABLE, Finding, State, ok
from molora_client import Molora, MoloraError, Tls

if TYPE_CHECKING:
    from router_service.settings import RouterSettings

PLAIN: Mapping[str, Any] = {
    "executor_tls_ca": None,
    "executor_tls_cert": None,
    "executor_tls_key": None,
    "executor_token_file": None,
}
"""The settings of a router whose executor is on trial beside it, in plaintext."""
_LET_IN = "put one that it knows, of role infer, into the file of --executor-token-file"
_REMEDIES = {
    "UNAUTHENTICATED": _LET_IN,
    "PERMISSION_DENIED": _LET_IN,
    "UNIMPLEMENTED": "correct --executor: another server has this address",
    "UNAVAILABLE": "start it, or correct --executor and the files of --executor-tls-ca, "
    "--executor-tls-cert and --executor-tls-key",
}


def check_executor_tls(settings: RouterSettings) -> Finding:
    """Whether screens may go that way, and until when the router's certificate is good."""
    from service_chassis.settings import stays_here

    check, files = "router: TLS to the executor", settings.executor_files
    if files.ca is None:
        if stays_here(settings.executor):
            return ok(check, "off: the executor is on this machine")
        found = f"off: screens go to {settings.executor} in plaintext"
        return Finding(check, State.WARNING, found, "give the executor TLS, and --executor-tls-ca")
    if files.certificate is None or files.key is None:
        return ok(check, "on; the router shows no certificate")
    return check_certificate(check, files.certificate, files.key, of_client=True)


def check_executor_token(settings: RouterSettings) -> Finding:
    """Whether anybody but the router can read its token."""
    check, path = "router: token for the executor", settings.executor_token_file
    if path is None:
        return ok(check, "none")
    return check_private(check, path, "it is shown, and the file is the router's own")


def as_router(settings: RouterSettings, timeout_s: float) -> Molora:
    """A client that reaches the executor as the router does."""
    from service_chassis.upstream import read_token

    files = settings.executor_files
    token = read_token(files.token) if files.token else None
    tls = Tls(files.ca, files.certificate, files.key) if files.ca else None
    return Molora(executor=settings.executor, token=token, tls=tls, timeout_s=timeout_s)


def check_executor(executor: Molora, settings: RouterSettings) -> Finding:
    """Whether the executor lets the router in, and runs what its bundle was made for.

    A router on trial would wait for that, and not say what for.

    Args:
        executor: See `as_router`.
        settings: The router's; its bundle is known to be good.
    """
    from router_service.bundle import load_bundle
    from router_service.core import ExecutorInfo, LoadedExpert
    from router_service.handshake import compare

    check = "router: executor"
    try:
        info = executor.server_info()
    except MoloraError as error:
        number: int = grpc.StatusCode[error.code].value[0]
        remedy = _REMEDIES.get(error.code, error.remedy)
        found = f"{settings.executor} does not let it in: {error.code}"
        return Finding(check, State.FAILED, found, remedy, FIRST_GRPC_EXIT_CODE + number)
    loaded = tuple(LoadedExpert(one.name, one.digest, one.generation) for one in info.experts)
    runs = ExecutorInfo(info.model, info.feature_spec.digest, info.expert_set, loaded)
    problem = compare(load_bundle(settings.bundle).manifest, runs)
    if problem is not None:
        which = problem.metadata.get("expert", "")
        found = f"{problem.reason} {which}".strip()
        return Finding(check, State.FAILED, found, problem.message, NOT_LOADABLE)
    return ok(check, "it lets the router in, and runs what the bundle was made for")
