"""What every channel of the SDK is made of: options, TLS, and the rule about tokens.

Knows no method and no message.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from molora_client.errors import InvalidArgumentError

# A lossless 4K screenshot passes 4 MiB, grpcio's default; the servers allow as much.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Tls:
    """How to trust the servers, and how to be trusted by them.

    Attributes:
        ca_file: PEM roots; None for the system's.
        certificate_file: PEM chain of this client, for mTLS; with `key_file`.
        key_file: PEM private key of this client.
        server_name: Name to expect in the server's certificate, if it is not the address.
    """

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = field(default=None, repr=False)
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files now.

        Raises:
            OSError: A file cannot be read.
        """
        ca, certificate, key = (
            file.read_bytes() if file else None
            for file in (self.ca_file, self.certificate_file, self.key_file)
        )
        return grpc.ssl_channel_credentials(ca, key, certificate)


def channel_options(address: str, tls: Tls | None) -> list[tuple[str, int | str]]:
    """The grpcio options of a channel to `address`."""
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # grpcio never retries a request that outgrows this buffer (256 KiB by default).
        ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
        # Reconnect as fast as the retry rule asks, not after the default second.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # A server that vanished without a word is noticed while a call waits for it.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]
    if is_loopback(address):
        # A proxy for the outside world cannot reach this machine's own servers.
        options.append(("grpc.enable_http_proxy", 0))
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def refuse_token_over_plaintext(address: str, token: str | None, tls: Tls | None) -> None:
    """A token may leave the machine only over TLS.

    Raises:
        InvalidArgumentError: It would leave in the clear.
    """
    if token is not None and tls is None and not is_loopback(address):
        raise InvalidArgumentError(
            "refusing to send a token over plaintext to an address beyond loopback",
            reason="TOKEN_OVER_PLAINTEXT",
            metadata={"address": address},
        )


def is_loopback(address: str) -> bool:
    """True if `address` (`host:port`, `[v6]:port` or `unix:path`) stays on this machine."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
