"""Settings of the bridge, checked once. Knows no flag and no environment: the verb reads those."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from molora_client import Tls

# The SDK sends no message above 16 MiB, and base64 makes four bytes of three.
LARGEST_BODY_BYTES = 22 * 2**20
SMALLEST_BODY_BYTES = 2**10


class SettingsError(ValueError):
    """A setting that cannot be used; the text names it, its value unless secret, and a remedy."""


@dataclass(frozen=True)
class WebSettings:
    """How the bridge is reached, and whom it asks.

    Attributes:
        router: Address of the router, `host:port`.
        executor: Address of the executor.
        host: Address to listen on; anything beyond loopback needs TLS.
        port: HTTP port; 0 takes any free one.
        timeout_s: Deadline of one request to the services, retries included.
        max_body_bytes: Largest request body; base64 of the largest screen must fit.
        allowed_origins: Pages of other origins that may call, as `https://host[:port]`.
        token: Bearer token for the services.
        upstream_tls: How to trust the services; None for plaintext.
        tls_cert: PEM certificate chain of this server.
        tls_key: PEM private key of `tls_cert`.
        tls_client_ca: PEM certificates that must have signed a browser's certificate.
    """

    router: str
    executor: str
    host: str = "127.0.0.1"
    port: int = 8080
    timeout_s: float = 60.0
    # An 8 MiB screen, the executor's default limit, is 11.2 MiB in base64.
    max_body_bytes: int = 12 * 2**20
    allowed_origins: tuple[str, ...] = ()
    token: str | None = field(default=None, repr=False)
    upstream_tls: Tls | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None

    def __post_init__(self) -> None:
        for origin in self.allowed_origins:
            _check_origin(origin)
        if not SMALLEST_BODY_BYTES <= self.max_body_bytes <= LARGEST_BODY_BYTES:
            raise SettingsError(
                f"--max-body-bytes {self.max_body_bytes} is not within "
                f"{SMALLEST_BODY_BYTES} and {LARGEST_BODY_BYTES}; the default holds an 8 MiB screen"
            )
        self._check_transport()

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the bridge."""
        return is_loopback(self.host)

    def _check_transport(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise SettingsError("--tls-cert and --tls-key belong together; give both or neither")
        if self.tls_cert is None and self.tls_client_ca is not None:
            raise SettingsError("--tls-client-ca needs TLS; give --tls-cert and --tls-key too")
        if self.tls_cert is None and not self.is_local:
            raise SettingsError(
                f"--host {self.host} is beyond loopback without TLS; give --tls-cert and "
                "--tls-key, or listen on 127.0.0.1"
            )
        if self.token is not None and self.tls_client_ca is None and not self.is_local:
            raise SettingsError(
                f"--host {self.host} with --token-file would lend the token to everyone; give "
                "--tls-client-ca, or listen on 127.0.0.1"
            )
        if self.tls_cert is not None:
            _check_files(self.tls_cert, self.tls_key, self.tls_client_ca)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_origin(origin: str) -> None:
    """An origin as browsers send it. `*` and `null` are everybody, so they are refused too."""
    try:
        parts = urlsplit(origin)
        whole = f"{parts.scheme}://{parts.netloc}"
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in whole
        valid = valid and origin == whole == origin.lower() and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise SettingsError(
            f"--allow-origin {origin} is no origin; write https://host or https://host:port, "
            "in lower case and without a path"
        )


def _check_files(cert: Path, key: Path | None, client_ca: Path | None) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key)
    except OSError as error:
        raise SettingsError(
            f"--tls-cert {cert} cannot be used; give a PEM certificate chain and its key"
        ) from error
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except OSError as error:
            raise SettingsError(
                f"--tls-client-ca {client_ca} cannot be used; give PEM certificates"
            ) from error
