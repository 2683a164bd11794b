"""How a verb reaches the servers: the shared options and the client.

Knows no verb.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from clients.cli.exits import failed_calls
from molora_client import Molora, Tls

Router = Annotated[str, typer.Option(help="Address of the router.")]
Executor = Annotated[str, typer.Option(help="Address of the executor.")]
TimeoutS = Annotated[float, typer.Option("--timeout", min=0.001, help="Deadline in seconds.")]
TlsCa = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="PEM roots to trust; turns TLS on."),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="PEM chain to show under mutual TLS."),
]
TlsKey = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="PEM key of --tls-cert.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="File with the bearer token, which a flag would show to other users.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
# Of the verbs that measure: running services, or the miniature's.
RunningRouter = Annotated[
    str | None,
    typer.Option(help="Address of the router; unset: the miniature is started."),
]
RunningExecutor = Annotated[
    str | None, typer.Option(help="Address of the executor; with --router.")
]
LabelledRecords = Annotated[
    Path | None,
    typer.Argument(
        help="JSONL file of labelled records; unset: the miniature's held-out.",
    ),
]
ImagesRoot = Annotated[
    Path | None, typer.Option(help="What image paths are relative to; unset: the file's.")
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="JSON for machines; - is stdout.")
]

ROUTER = "127.0.0.1:50051"
EXECUTOR = "127.0.0.1:50052"
TIMEOUT_S = 60.0


@contextlib.contextmanager
def connected(
    *,
    router: str = ROUTER,
    executor: str = EXECUTOR,
    timeout_s: float,
    tls: Tls | None,
    token_file: Path | None,
    as_json: bool,
) -> Iterator[Molora]:
    """A client for the verb's body; a failed call ends the process as grpcurl's does.

    Args:
        router: Address of the router.
        executor: Address of the executor.
        timeout_s: Deadline of each call, in seconds.
        tls: See `client_tls`.
        token_file: File with the bearer token.
        as_json: Print the error as JSON too.

    Yields:
        The client.

    Raises:
        typer.Exit: 64 + the gRPC code, after one line on stderr.
    """
    token = token_file.read_text(encoding="utf-8").strip() if token_file else None
    with failed_calls(as_json), Molora(router, executor, token, tls, timeout_s) as client:
        yield client


def client_tls(ca: Path | None, certificate: Path | None, key: Path | None) -> Tls | None:
    """How to trust the servers, and how to be trusted by them; None for plaintext.

    Raises:
        typer.BadParameter: A certificate without its key or without TLS.
    """
    if (certificate is None) != (key is None) or (certificate is not None and ca is None):
        raise typer.BadParameter("a certificate to show needs its key, and the CA of the servers")
    return Tls(ca, certificate, key) if ca else None


def plain(value: Any) -> Any:
    """A result as JSON can hold it, without a screen's bytes.

    Args:
        value: A dataclass of results, or a part of one.

    Returns:
        Dictionaries, lists, text and numbers.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: plain(part) for name, part in parts.items() if not isinstance(part, bytes)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return value
