"""`molora doctor`. Knows which checks there are and their order; knows no check's work."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli import checks, connection, findings, output, trial
from clients.cli.connection import Json, TimeoutS, TlsCa, TokenFile
from clients.cli.findings import Finding, State
from molora_client import Molora, Tls

if TYPE_CHECKING:
    from executor_service.settings import ExecutorSettings
    from router_service.settings import RouterSettings
    from service_chassis.settings import ServerSettings


class What(str, Enum):
    """What this machine is to serve."""

    all = "all"
    router = "router"
    executor = "executor"


def doctor(
    what: Annotated[What, typer.Argument(help="What this machine serves.")] = What.all,
    flags: Annotated[
        list[str] | None, typer.Argument(help="After `--`: flags, as for `molora serve`.")
    ] = None,
    timeout_s: TimeoutS = connection.TIMEOUT_S,
    tls_ca: TlsCa = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Check versions, settings, ports, TLS, device and memory; load everything; ask once.

    Servers that run already are asked; others are started for the check, on free ports and without
    TLS, as their settings say, and stopped again. --tls-ca and --token-file are for those that run.
    """
    token = token_file.read_text(encoding="utf-8").strip() if token_file else None
    examination = _Examination(flags or (), timeout_s, tls_ca, token)
    with examination:
        examination.run(what)
    found = examination.findings
    code = findings.exit_code(found)
    if as_json:
        checked = [dataclasses.asdict(finding) for finding in found]
        output.print_json({"ok": code == 0, "exit_code": code, "checks": connection.plain(checked)})
    else:
        rows = [[one.check, one.state.value, one.found] for one in found]
        output.table(None, ("check", "state", "found"), rows)
        for one in found:
            if one.remedy:
                output.console.print(f"{one.check}: {one.remedy}", markup=False)
    raise typer.Exit(code)


class _Examination:
    """The checks so far; servers that were started end with the `with` block."""

    def __init__(
        self, flags: Sequence[str], timeout_s: float, tls_ca: Path | None, token: str | None
    ) -> None:
        self.findings: list[Finding] = []
        self._flags = flags
        self._timeout_s = timeout_s
        self._tls = Tls(ca_file=tls_ca) if tls_ca else None
        self._token = token
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Examination:
        # Without this, servers on trial would outlive a doctor that is told to stop.
        before = signal.signal(signal.SIGTERM, _leave)
        self._stack.callback(signal.signal, signal.SIGTERM, before)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, what: What) -> None:
        """Everything for one or both servers; what cannot be asked after a failure is not."""
        executor = self._executor_settings() if what is not What.router else None
        router = self._router_settings() if what is not What.executor else None
        if findings.exit_code(self.findings):
            return
        try:
            executor_address = self._executor_address(executor, router)
            router_address = self._router_address(router, executor_address)
        except trial.NotStarted as error:
            self.findings.append(error.finding)
            return
        self._golden(executor_address, router_address if router is not None else None)

    def _executor_settings(self) -> ExecutorSettings | None:
        from executor_service.settings import ExecutorSettings

        if not self._add(checks.check_versions("executor")):
            return None
        settings = self._common(ExecutorSettings, "executor")
        if isinstance(settings, ExecutorSettings):
            if self._add(checks.check_model_files(settings)):
                self._add(checks.check_device(settings))
                if not self._runs(settings, "executor"):
                    self._add(checks.check_memory(settings))
            return settings
        return None

    def _router_settings(self) -> RouterSettings | None:
        from router_service.settings import RouterSettings

        if not self._add(checks.check_versions("router")):
            return None
        settings = self._common(RouterSettings, "router")
        if isinstance(settings, RouterSettings):
            self._add(checks.check_bundle_files(settings))
            return settings
        return None

    def _common(self, cls: type[ServerSettings], service: str) -> ServerSettings | None:
        finding, settings = checks.check_settings(cls, service, self._flags)
        self._add(finding)
        if settings is None:
            return None
        self._add(checks.check_tls(settings, service))
        self._add(checks.check_tokens(settings, service))
        runs = self._runs(settings, service)
        for what, host, port in (
            ("gRPC", settings.host, settings.port),
            ("metrics", settings.metrics_host, settings.metrics_port),
        ):
            self._add(checks.check_port(host, port, what, service, runs=runs))
        return settings

    def _executor_address(
        self, executor: ExecutorSettings | None, router: RouterSettings | None
    ) -> str:
        if executor is None:
            assert router is not None, "one of them is examined"
            return router.executor
        return self._address("executor", executor, {})

    def _router_address(self, router: RouterSettings | None, executor: str) -> str:
        if router is None:
            return connection.ROUTER
        return self._address("router", router, {"executor": executor, "audit_file": None})

    def _address(self, service: str, settings: ServerSettings, changes: dict[str, object]) -> str:
        if self._runs(settings, service):
            self._add(findings.ok(f"{service}: starts", "it runs already"))
            return f"{settings.host}:{settings.port}"
        address = self._stack.enter_context(trial.started(service, settings, changes))
        self._add(findings.ok(f"{service}: starts", "on trial, with everything loaded"))
        return address

    def _golden(self, executor: str, router: str | None) -> None:
        with contextlib.ExitStack() as clients:

            def client(address: str, service: str) -> Molora:
                # A server on trial has no TLS.
                tls = self._tls if self._answers(address, service, secured=True) else None
                made = Molora(address, address, self._token, tls, self._timeout_s)
                return clients.enter_context(made)

            self.findings += trial.golden_request(
                client(executor, "executor"), client(router, "router") if router else None
            )

    def _runs(self, settings: ServerSettings, service: str) -> bool:
        address = f"{settings.host}:{settings.port}"
        secured = settings.tls_files is not None
        return settings.port != 0 and self._answers(address, service, secured=secured)

    def _answers(self, address: str, service: str, *, secured: bool) -> bool:
        if not secured:
            return trial.is_serving(address, service, None)
        return self._tls is not None and trial.is_serving(address, service, self._tls.credentials())

    def _add(self, finding: Finding) -> bool:
        """Note a finding; whether it lets the examination go on."""
        self.findings.append(finding)
        return finding.state is not State.FAILED


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
