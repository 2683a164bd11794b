"""`molora doctor`. Knows which checks there are and their order; knows no check's work."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import ssl
from collections.abc import Sequence
from enum import Enum
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.cli import access, checks, connection, credentials, findings, output, trial
from clients.cli.connection import Json, TimeoutS, TlsCa, TlsCert, TlsKey, TokenFile
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
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Check versions, settings, ports, TLS, device and memory; load everything; ask once.

    Servers that run already are asked; others are started for the check, on free ports and without
    TLS, as their settings say, and stopped again. --tls-ca, --tls-cert, --tls-key and --token-file
    are for those that run. Before a router the executor is asked with what the router has for it.
    """
    tls = connection.client_tls(tls_ca, tls_cert, tls_key)
    token = token_file.read_text(encoding="utf-8").strip() if token_file else None
    examination = _Examination(flags or (), timeout_s, tls, token)
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
        self, flags: Sequence[str], timeout_s: float, tls: Tls | None, token: str | None
    ) -> None:
        self.findings: list[Finding] = []
        self._flags = flags
        self._timeout_s = timeout_s
        self._tls = tls
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
            self._ask(executor, router)
        except trial.NotStarted as error:
            self.findings.append(error.finding)

    def _executor_settings(self) -> ExecutorSettings | None:
        if not self._add(checks.check_versions("executor")):
            return None
        from executor_service.settings import ExecutorSettings

        settings = self._common(ExecutorSettings, "executor")
        if isinstance(settings, ExecutorSettings):
            if self._add(checks.check_model_files(settings)):
                self._add(checks.check_device(settings))
                if not self._runs(settings, "executor"):
                    self._add(checks.check_memory(settings))
            return settings
        return None

    def _router_settings(self) -> RouterSettings | None:
        if not self._add(checks.check_versions("router")):
            return None
        from router_service.settings import RouterSettings

        settings = self._common(RouterSettings, "router")
        if isinstance(settings, RouterSettings):
            self._add(checks.check_bundle_files(settings))
            self._add(access.check_executor_tls(settings))
            self._add(access.check_executor_token(settings))
            return settings
        return None

    def _common(self, cls: type[ServerSettings], service: str) -> ServerSettings | None:
        finding, settings = checks.check_settings(cls, service, self._flags)
        self._add(finding)
        if settings is None:
            return None
        self._add(credentials.check_tls(settings, service))
        self._add(credentials.check_tokens(settings, service))
        runs = self._runs(settings, service)
        for what, host, port in (
            ("gRPC", settings.host, settings.port),
            ("metrics", settings.metrics_host, settings.metrics_port),
        ):
            self._add(checks.check_port(host, port, what, service, runs=runs))
        return settings

    def _ask(self, executor: ExecutorSettings | None, router: RouterSettings | None) -> None:
        """Start what does not run, and ask for a golden answer."""
        clients = self._stack
        changes: dict[str, Any] = {"audit_file": None}
        if executor is not None and not self._runs(executor, "executor"):
            address = self._on_trial("executor", executor, {})
            asked = Molora(executor=address, timeout_s=self._timeout_s)
            changes |= {**access.PLAIN, "executor": address}
        elif router is None:
            assert executor is not None, "one of them is examined"
            asked = self._client(executor, "executor")
        else:
            if executor is not None:
                self._note_running("executor")
            asked = access.as_router(router, self._timeout_s)
        clients.enter_context(asked)
        if router is None:
            self.findings += trial.golden_request(asked, None)
        elif self._add(access.check_executor(asked, router)):
            routing = clients.enter_context(self._routing_client(router, changes))
            self.findings += trial.golden_request(asked, routing)

    def _routing_client(self, router: RouterSettings, changes: dict[str, Any]) -> Molora:
        if self._runs(router, "router"):
            return self._client(router, "router")
        return Molora(self._on_trial("router", router, changes), timeout_s=self._timeout_s)

    def _client(self, settings: ServerSettings, service: str) -> Molora:
        """A client of a server that runs."""
        self._note_running(service)
        address, tls = _address(settings), self._tls_of(settings)
        return Molora(address, address, self._token, tls, self._timeout_s)

    def _note_running(self, service: str) -> None:
        self._add(findings.ok(f"{service}: starts", "it runs already"))

    def _on_trial(self, service: str, settings: ServerSettings, changes: dict[str, Any]) -> str:
        address = self._stack.enter_context(trial.started(service, settings, changes))
        self._add(findings.ok(f"{service}: starts", "on trial, with everything loaded"))
        return address

    def _runs(self, settings: ServerSettings, service: str) -> bool:
        tls = self._tls_of(settings)
        if settings.port == 0 or (tls is None) != (settings.tls_files is None):
            return False
        return trial.is_serving(_address(settings), service, tls)

    def _tls_of(self, settings: ServerSettings) -> Tls | None:
        """How to trust a server of this machine, whose certificate has other names than loopback's.

        None for plaintext, and where nothing to trust was given or nobody can trust it.
        """
        files = settings.tls_files
        if files is None or self._tls is None:
            return None
        try:
            facts = credentials.certificate_facts(files.certificate, files.key, of_client=False)
        except ssl.SSLCertVerificationError:
            return None
        names = [str(name) for _, name in facts.get("subjectAltName", ())]
        return dataclasses.replace(self._tls, server_name=names[0] if names else None)

    def _add(self, finding: Finding) -> bool:
        """Note a finding; whether it lets the examination go on."""
        self.findings.append(finding)
        return finding.state is not State.FAILED


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _address(settings: ServerSettings) -> str:
    """Where this machine reaches a server of its own."""
    every = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (nothing is bound)
    host = every.get(settings.host, settings.host)
    return f"[{host}]:{settings.port}" if ":" in host else f"{host}:{settings.port}"
