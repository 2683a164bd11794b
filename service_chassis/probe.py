"""`python -m service_chassis.probe HOST:PORT [CERT KEY]`: exit code 0 if a server says SERVING.

For the health checks of containers, which run beside the server. Knows health, with and without
TLS; knows no service.
"""

from __future__ import annotations

import socket
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_PATIENCE_S = 3.0
_NO_PROXY = ("grpc.enable_http_proxy", 0)


def main(argv: Sequence[str]) -> int:
    """Ask once.

    Args:
        argv: One address; names are those of the server's own machine. Then, if the server wants to
            see a certificate, PEM files of one and of its key.

    Returns:
        0 for SERVING, else 1.
    """
    address, *pair = argv
    with grpc.insecure_channel(address, (_NO_PROXY,)) as channel:
        if _serving(channel):
            return 0
    own = _own_certificate(address)
    if own is None:
        return 1
    pem, name = own
    options = (_NO_PROXY, ("grpc.ssl_target_name_override", name))
    certificate, key = [Path(file).read_bytes() for file in pair] or (None, None)
    credentials = grpc.ssl_channel_credentials(pem.encode(), key, certificate)
    with grpc.secure_channel(address, credentials, options) as channel:
        return 0 if _serving(channel) else 1


def _serving(channel: grpc.Channel) -> bool:
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=_PATIENCE_S)
    except grpc.RpcError:
        return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def _own_certificate(address: str) -> tuple[str, str] | None:
    """The certificate that a server shows, which its own machine may trust, and a name in it."""
    host, _, port = address.rpartition(":")
    target = (host.strip("[]"), int(port))
    try:
        pem = ssl.get_server_certificate(target, timeout=_PATIENCE_S)
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trust.check_hostname = False
        trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        trust.load_verify_locations(cadata=pem)
        with (
            socket.create_connection(target, timeout=_PATIENCE_S) as plain,
            trust.wrap_socket(plain) as secured,
        ):
            facts: dict[str, Any] = secured.getpeercert() or {}
    except OSError:
        return None
    names = [str(name) for _, name in facts.get("subjectAltName", ())]
    return (pem, names[0]) if names else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
