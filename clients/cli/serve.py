"""`molora serve executor|router|all|web`. Knows how to start the servers.

The two services read their own flags; the bridge's are here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli import connection, output
from clients.cli.connection import Executor, Router, TlsCa, TlsCert, TokenFile
from clients.cli.exits import BAD_INPUT
from clients.cli.extras import WEB, needing

if TYPE_CHECKING:
    from training.server_process import ServerProcess

app = typer.Typer(help="Run the servers.", no_args_is_help=True)

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
LISTEN_TIMEOUT_S = 120.0
POLL_S = 0.2


@app.command("executor", context_settings=PASS_ON)
def executor(context: typer.Context) -> None:
    """Run the executor; flags are its own, see `molora serve executor --help`."""
    _become("executor_service", context.args)


@app.command("router", context_settings=PASS_ON)
def router(context: typer.Context) -> None:
    """Run the router; flags are its own, see `molora serve router --help`."""
    _become("router_service", context.args)


@app.command("all")
def both(
    router_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 50051,
    executor_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 50052,
    flags: Annotated[
        list[str] | None, typer.Argument(help="After `--`: flags for both servers.")
    ] = None,
) -> None:
    """Run executor and router as two processes, until one ends or SIGTERM comes.

    Settings of one server only are given as MOLORA_EXECUTOR_* and MOLORA_ROUTER_*.
    """
    from training.server_process import ServerFailed

    shared = flags or []
    with _Servers() as servers:
        try:
            address = servers.start("executor_service", ["--port", str(executor_port), *shared])
            flags_of_router = ["--port", str(router_port), "--executor", address, *shared]
            servers.start("router_service", flags_of_router)
            code = servers.until_one_ends()
        except ServerFailed as error:
            output.error(str(error))
            raise typer.Exit(1) from None
    raise typer.Exit(code)


PemFile = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="PEM file.")]
ServicesKey = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="PEM key of --services-cert.")
]


@app.command("web")
def web(
    host: Annotated[str, typer.Option(help="Beyond loopback only with TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8080,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Page that may call, as https://host; repeatable.")
    ] = None,
    max_body_bytes: Annotated[int, typer.Option(help="Largest request.")] = 12 * 2**20,
    tls_cert: PemFile = None,
    tls_key: PemFile = None,
    tls_client_ca: PemFile = None,
    router: Router = connection.ROUTER,
    executor: Executor = connection.EXECUTOR,
    timeout_s: connection.TimeoutS = connection.TIMEOUT_S,
    tls_ca: TlsCa = None,
    services_cert: TlsCert = None,
    services_key: ServicesKey = None,
    token_file: TokenFile = None,
) -> None:
    """Run the JSON bridge and the gate inspector page, before a router and an executor.

    --tls-cert, --tls-key and --tls-client-ca are for browsers; --tls-ca, --services-cert,
    --services-key and --token-file for the services.
    """
    upstream_tls = connection.client_tls(tls_ca, services_cert, services_key)
    with needing("web", WEB):
        from clients.web.server import PortNotAvailable, run
        from clients.web.settings import SettingsError, WebSettings
    try:
        settings = WebSettings(
            router=router,
            executor=executor,
            host=host,
            port=port,
            timeout_s=timeout_s,
            max_body_bytes=max_body_bytes,
            allowed_origins=tuple(allow_origin or ()),
            token=token_file.read_text(encoding="utf-8").strip() if token_file else None,
            upstream_tls=upstream_tls,
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_client_ca=tls_client_ca,
        )
        run(settings)
    except SettingsError as error:
        output.error(str(error))
        raise typer.Exit(BAD_INPUT) from None
    except PortNotAvailable as error:
        output.error(str(error))
        raise typer.Exit(1) from None


def _become(module: str, arguments: list[str]) -> None:
    """Replaces this process, so that signals and the exit code are the server's own."""
    command = [sys.executable, "-m", module, *arguments]
    os.execv(sys.executable, command)  # noqa: S606 - our own interpreter and module


class _Servers:
    """The started servers; leaving the `with` block stops the last one first and waits for all.

    The first SIGTERM or SIGINT leaves the block; each further one is passed on at once, and the
    servers then end without waiting for running calls.
    """

    def __init__(self) -> None:
        self._running: list[ServerProcess] = []
        self._stack = contextlib.ExitStack()
        self._leaving = False

    def __enter__(self) -> _Servers:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._stack.callback(signal.signal, number, signal.signal(number, self._on_signal))
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving = True
        self._stack.close()

    def start(self, module: str, flags: list[str]) -> str:
        """Starts a server and waits until it listens.

        Returns:
            Its address.

        Raises:
            ServerFailed: It died or said nothing.
        """
        from training.server_process import ServerProcess

        server = ServerProcess(module, flags, echo=_print_line, grace_s=None)
        self._running.append(self._stack.enter_context(server))
        return server.wait_listening(LISTEN_TIMEOUT_S)

    def until_one_ends(self) -> int:
        """Waits; a server that ends by itself is a failure.

        Returns:
            Its exit code, or 1 where that was 0.
        """
        while True:
            for server in self._running:
                if server.exit_code is not None:
                    output.error(f"{server.name} ended with exit code {server.exit_code}")
                    return abs(server.exit_code) or 1
            time.sleep(POLL_S)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._leaving:
            for server in self._running:
                server.terminate()
        else:
            self._leaving = True
            raise SystemExit(0)


def _print_line(line: str) -> None:
    print(line, flush=True)
