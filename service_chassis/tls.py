"""TLS of a server: its certificate, whom it lets in, and both anew when the files change.

Knows PEM files, OpenSSL and gRPC's credentials; knows no port and no method.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from service_chassis.watched import Watched


@dataclass(frozen=True)
class TlsFiles:
    """Where the PEM files are.

    Attributes:
        certificate: Chain of this server.
        key: Private key of its first certificate.
        client_ca: Certificates that must have signed a client's; None: clients show none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class Tls:
    """What the files hold, checked: the key belongs to the certificate, all is PEM."""

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None
    context: ssl.SSLContext

    @classmethod
    def read(cls, files: TlsFiles) -> Tls:
        """Read and check the files.

        Raises:
            OSError: A file cannot be read, is not PEM, or the key is another certificate's.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(files.certificate, files.key)
        client_ca = None
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
            client_ca = files.client_ca.read_bytes()
        return cls(files.certificate.read_bytes(), files.key.read_bytes(), client_ca, context)


def watch_tls(files: TlsFiles) -> Watched[Tls]:
    """The files' content, whenever it is asked for.

    Raises:
        OSError: They cannot be used now.
    """
    paths = [files.certificate, files.key, *([files.client_ca] if files.client_ca else [])]
    return Watched("tls", paths, lambda: Tls.read(files))


def server_credentials(tls: Watched[Tls]) -> grpc.ServerCredentials:
    """Credentials that follow the files: each handshake is done with what they hold then.

    A connection goes on with what it began with.

    Args:
        tls: The files' content.

    Returns:
        Credentials for `add_secure_port`, with TLS 1.2 or newer (grpc's own rule).
    """
    given = tls.current()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        # grpc calls this on a thread of its own, before each handshake.
        nonlocal given
        current = tls.current()
        if current is given:
            return None
        given = current
        return _configuration(current)

    credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
        _configuration(given),
        changed,  # type: ignore[arg-type]  # None is grpc's word for: as before
        require_client_authentication=given.client_ca is not None,
    )
    return credentials


def _configuration(tls: Tls) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(tls.key, tls.certificate)], tls.client_ca)
