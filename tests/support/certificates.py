"""Certificates of a CA that lives as long as the test, as the files that a server is given."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path

import grpc
import trustme

from service_chassis.tls import TlsFiles

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)


@dataclass(frozen=True)
class Pair:
    """A certificate chain and its key, in PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """A CA."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    @property
    def pem(self) -> bytes:
        """Its own certificate."""
        return self._ca.cert_pem.bytes()

    def issue(self, *names: str, expired: bool = False) -> Pair:
        """A certificate for some names; for loopback if there are none."""
        identities = names or ("localhost", "127.0.0.1")
        expiry = {"not_before": LONG_AGO, "not_after": LONG_AGO} if expired else {}
        made = self._ca.issue_cert(*identities, **expiry)
        chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
        return Pair(chain, made.private_key_pem.bytes())


def write_server(folder: Path, pair: Pair, client_ca: bytes | None = None) -> TlsFiles:
    """Write (or replace, each file at once) what a server reads."""
    contents = {"server.pem": pair.certificate, "server.key": pair.key, "client-ca.pem": client_ca}
    for name, content in contents.items():
        if content is not None:
            replace(folder / name, content)
    ca = folder / "client-ca.pem" if client_ca is not None else None
    return TlsFiles(folder / "server.pem", folder / "server.key", ca)


def replace(path: Path, content: bytes) -> None:
    """Put a file in the place of another as careful tools do: no reader sees half of it."""
    draft = path.with_suffix(".new")
    draft.write_bytes(content)
    os.replace(draft, path)


def trusting(ca: bytes, client: Pair | None = None) -> grpc.ChannelCredentials:
    """Credentials of a client."""
    key, chain = (client.key, client.certificate) if client else (None, None)
    return grpc.ssl_channel_credentials(ca, key, chain)
