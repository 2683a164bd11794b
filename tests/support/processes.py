"""The services as processes of their own, on ports that are free, with their logs in a file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

START_S = 120
STOP_S = 60


@dataclass(frozen=True)
class Running:
    """A server that answers, and where it writes."""

    process: subprocess.Popen[str]
    address: str
    metrics_address: str
    log_file: Path

    @property
    def log(self) -> str:
        """Everything it wrote to standard error so far."""
        return self.log_file.read_text()

    def terminate(self) -> int:
        """Send SIGTERM and wait; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)


@contextlib.contextmanager
def running(
    module: str,
    *flags: str,
    log_file: Path,
    environ: Mapping[str, str] | None = None,
    ca: bytes | None = None,
) -> Iterator[Running]:
    """Start `python -m <module>` and wait until its health says SERVING; stopped at the end.

    Args:
        module: `executor_service` or `router_service`.
        flags: Beside the ports.
        log_file: Gets standard error.
        environ: Variables beside those of this process.
        ca: Whom to trust where the flags turn TLS on; in PEM.
    """
    with log_file.open("w") as log:
        process = subprocess.Popen(
            command(module, *flags),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment(environ),
        )
    try:
        assert process.stdout is not None
        addresses = [process.stdout.readline().rpartition(" ")[2].strip() for _ in range(2)]
        assert all(addresses), log_file.read_text()
        wait_until_serving(addresses[0], ca)
        yield Running(process, *addresses, log_file)
    finally:
        process.kill()
        process.communicate()


def refused(
    module: str, *flags: str, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a server that cannot start, to its end."""
    return subprocess.run(
        command(module, *flags),
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
        env=environment(environ),
    )


def command(module: str, *flags: str) -> list[str]:
    """The command line, with any free ports."""
    return [sys.executable, "-m", module, "--port", "0", "--metrics-port", "0", *flags]


def environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """This process's variables without those that are settings, and `extra`."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("LORA_", "MOLORA_"))}
    return {**own, **(extra or {})}


def wait_until_serving(address: str, ca: bytes | None = None) -> None:
    """Return once the server's health says SERVING."""
    with (
        grpc.secure_channel(address, grpc.ssl_channel_credentials(ca))
        if ca
        else grpc.insecure_channel(address)
    ) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=START_S
        )
        for reply in watch:
            if reply.status == health_pb2.HealthCheckResponse.SERVING:
                watch.cancel()
                return
    raise AssertionError("the server never said SERVING")
