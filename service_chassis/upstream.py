"""The connection to another server: TLS and token that follow their files, as this server's do.

Knows PEM files, tokens and channels; knows no service and no method.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc

from service_chassis.watched import Watched

Stub = TypeVar("Stub")
Options = Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class UpstreamFiles:
    """Where the secrets of a connection are.

    Attributes:
        ca: PEM certificates that must have signed the server's; None: plaintext.
        certificate: PEM chain of this client, for mutual TLS.
        key: PEM private key of its first certificate.
        token: Holds the bearer token and nothing else.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None


@dataclass(frozen=True)
class ClientTls:
    """What the PEM files hold, checked: the key belongs to the certificate, all is PEM."""

    ca: bytes
    certificate: bytes | None
    key: bytes | None = field(repr=False)

    @classmethod
    def read(cls, ca: Path, certificate: Path | None, key: Path | None) -> ClientTls:
        """Read and check the files; certificate and key are given together or not at all.

        Raises:
            OSError: A file cannot be read, is not PEM, or the key is another certificate's.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(ca)
        if certificate is None or key is None:
            return cls(ca.read_bytes(), None, None)
        context.load_cert_chain(certificate, key)
        return cls(ca.read_bytes(), certificate.read_bytes(), key.read_bytes())

    def credentials(self) -> grpc.ChannelCredentials:
        """Credentials of a channel, with TLS 1.2 or newer (grpc's own rule)."""
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)


def read_token(path: Path) -> str:
    """The bearer token of a file that holds nothing else.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not one word of ASCII; what it says is not quoted.
    """
    words = path.read_text(encoding="utf-8").split()
    if len(words) != 1 or not words[0].isascii() or not words[0].isprintable():
        raise ValueError("it is not one word of ASCII")
    return words[0]


@dataclass(eq=False)
class _Connection(Generic[Stub]):
    """A channel, what it was made with, and how many calls use it."""

    tls: ClientTls | None
    channel: grpc.aio.Channel
    stub: Stub
    calls: int = 0


class Upstream(Generic[Stub]):
    """Calls to one server. Make and use it on one event loop.

    grpc gives no client new credentials, so the next call after a change has a new channel. Calls
    that run go on over the one that they began with, which is closed when the last has ended.

    Args:
        address: host:port; the server's certificate must name the host.
        files: TLS and token; without any, plaintext and no token.
        options: Of every channel.
        make_stub: Makes the stub of a channel.

    Raises:
        OSError: A file cannot be used now.
        ValueError: Likewise.
    """

    def __init__(
        self,
        address: str,
        files: UpstreamFiles,
        options: Options,
        make_stub: Callable[[grpc.aio.Channel], Stub],
    ) -> None:
        self._address = address
        self._options = options
        self._make_stub = make_stub
        self._tls = _watch_tls(files)
        self._token = _watch_token(files.token) if files.token else None
        self._connections = [self._connect()]

    @contextlib.asynccontextmanager
    async def stub(self) -> AsyncIterator[Stub]:
        """The stub for one call: what the files say now holds for it until it has ended."""
        connection = self._connections[-1]
        if self._tls is not None and self._tls.current() is not connection.tls:
            connection = self._connect()
            self._connections.append(connection)
        connection.calls += 1
        try:
            yield connection.stub
        finally:
            connection.calls -= 1
            await self._close_left()

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The token of now, as metadata of a call; empty where there is none."""
        if self._token is None:
            return ()
        return (("authorization", f"Bearer {self._token.current()}"),)

    async def close(self) -> None:
        """Close every channel; calls in flight are cancelled."""
        for connection in self._connections:
            await connection.channel.close()

    def _connect(self) -> _Connection[Stub]:
        if self._tls is None:
            tls, channel = None, grpc.aio.insecure_channel(self._address, self._options)
        else:
            tls = self._tls.current()
            channel = grpc.aio.secure_channel(self._address, tls.credentials(), self._options)
        return _Connection(tls, channel, self._make_stub(channel))

    async def _close_left(self) -> None:
        """Close the channels of old files that no call uses any more."""
        left = [one for one in self._connections[:-1] if not one.calls]
        self._connections = [one for one in self._connections if one not in left]
        for connection in left:
            await connection.channel.close()


def _watch_token(path: Path) -> Watched[str]:
    return Watched("upstream token", [path], lambda: read_token(path))


def _watch_tls(files: UpstreamFiles) -> Watched[ClientTls] | None:
    ca = files.ca
    if ca is None:
        return None
    paths = [path for path in (ca, files.certificate, files.key) if path is not None]
    return Watched("upstream tls", paths, lambda: ClientTls.read(ca, files.certificate, files.key))
