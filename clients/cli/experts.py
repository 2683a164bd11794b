"""`molora experts list|load|unload`. Knows the SDK's operator calls."""

from __future__ import annotations

from typing import Annotated

import typer

from clients.cli import connection, output
from clients.cli.connection import (
    Executor,
    Json,
    TimeoutS,
    TlsCa,
    TlsCert,
    TlsKey,
    TokenFile,
    client_tls,
    connected,
)
from molora_client import ExpertChange

app = typer.Typer(help="What is loaded, and changing it.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The expert's name.", metavar="NAME")]


@app.command("list")
def list_experts(
    executor: Executor = connection.EXECUTOR,
    timeout_s: TimeoutS = connection.TIMEOUT_S,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Show the loaded experts in expert-set order."""
    with connected(
        executor=executor,
        timeout_s=timeout_s,
        tls=client_tls(tls_ca, tls_cert, tls_key),
        token_file=token_file,
        as_json=as_json,
    ) as client:
        found = client.experts()
    if as_json:
        output.print_json(connection.plain(found))
        return
    columns = ("name", "label", "digest", "generation", "rank", "modules", "vision", "in use")
    rows = [
        [
            expert.name,
            expert.label,
            expert.digest[:12],
            expert.generation,
            expert.rank,
            expert.matched_modules,
            "yes" if expert.targets_vision else "no",
            expert.in_use,
        ]
        for expert in found.experts
    ]
    output.table(f"expert set {found.expert_set[:12]}", columns, rows)


@app.command("load")
def load(
    name: Name,
    path: Annotated[
        str, typer.Argument(help="Adapter directory on the server, under a configured root.")
    ],
    executor: Executor = connection.EXECUTOR,
    timeout_s: TimeoutS = connection.TIMEOUT_S,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Load an expert (admin role)."""
    with connected(
        executor=executor,
        timeout_s=timeout_s,
        tls=client_tls(tls_ca, tls_cert, tls_key),
        token_file=token_file,
        as_json=as_json,
    ) as client:
        change = client.load_expert(name, path)
    _show(change, "loaded", as_json)


@app.command("unload")
def unload(
    name: Name,
    generation: Annotated[
        int | None, typer.Option(min=1, help="Unload only this generation of it.")
    ] = None,
    executor: Executor = connection.EXECUTOR,
    timeout_s: TimeoutS = connection.TIMEOUT_S,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Unload an expert once no request holds it (admin role)."""
    with connected(
        executor=executor,
        timeout_s=timeout_s,
        tls=client_tls(tls_ca, tls_cert, tls_key),
        token_file=token_file,
        as_json=as_json,
    ) as client:
        change = client.unload_expert(name, expected_generation=generation)
    _show(change, "unloaded", as_json)


def _show(change: ExpertChange, what: str, as_json: bool) -> None:
    if as_json:
        output.print_json(connection.plain(change))
        return
    expert = change.expert
    output.console.print(
        f"{what} {expert.name} generation {expert.generation} digest {expert.digest[:12]}; "
        f"expert set is now {change.expert_set[:12]}"
    )
