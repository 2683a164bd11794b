"""One of our servers as a child process: start, find its address, wait for health, stop.

Knows what every server prints and answers; knows no service.
"""

from __future__ import annotations

import collections
import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import IO

_LISTENING = re.compile(r"^\S+ listening on (?P<address>\S+:\d+)$")
_TAIL_LINES = 20
_POLL_S = 0.1


class ServerFailed(Exception):
    """A server died or did not get ready. The text ends with its last lines."""


class ServerProcess:
    """A server and the threads that read its output.

    It gets a session of its own, so that Ctrl-C reaches it once, through `stop`, not twice.

    Args:
        module: What `python -m` runs.
        arguments: Its flags.
        echo: Called with each line that it prints; None to keep the last ones only.
        environment: Its variables; None for this process's.
        grace_s: How long it may drain when the `with` block ends; None for as long as it takes.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        echo: Callable[[str], None] | None = None,
        environment: Mapping[str, str] | None = None,
        grace_s: float | None = 10.0,
    ) -> None:
        self.name = module
        self._echo = echo
        self._grace_s = grace_s
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        self._address: str | None = None
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", module, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=self._read, args=(stream,), daemon=True)
            for stream in (self._process.stdout, self._process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative if a signal ended it."""
        return self._process.poll()

    def wait_listening(self, timeout_s: float) -> str:
        """Waits for the line that says where it listens.

        Returns:
            `host:port`.

        Raises:
            ServerFailed: It died, or the time is over.
        """
        for _ in self._until(timeout_s, "did not say where it listens"):
            if self._address is not None:
                return self._address
        raise AssertionError("the loop returns or raises")

    def wait_serving(self, timeout_s: float) -> None:
        """Waits until its health check answers SERVING.

        Raises:
            ServerFailed: It died, or the time is over.
        """
        address = self.wait_listening(timeout_s)
        with _health_check(address) as serving:
            for _ in self._until(timeout_s, "is not SERVING"):
                if serving():
                    return

    def stop(self) -> int:
        """Asks it to drain, and kills it if it has not ended within the grace.

        Returns:
            The exit code; negative if a signal ended it.
        """
        self.terminate()
        try:
            code = self._process.wait(self._grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        for reader in self._readers:
            reader.join(timeout=1.0)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        return code

    def terminate(self) -> None:
        """Sends SIGTERM if it still runs."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            text = line.rstrip("\n")
            self._tail.append(text)
            found = _LISTENING.match(text)
            if found and self._address is None:
                self._address = found["address"]
            if self._echo is not None:
                self._echo(text)

    def _until(self, timeout_s: float, problem: str) -> Iterator[None]:
        """Yields until the time is over, as long as the process lives."""
        end = time.monotonic() + timeout_s
        while True:
            yield
            if self.exit_code is not None:
                raise self._failed(f"ended with exit code {self.exit_code}")
            if time.monotonic() >= end:
                raise self._failed(f"{problem} after {timeout_s:.0f} s")
            time.sleep(_POLL_S)

    def _failed(self, problem: str) -> ServerFailed:
        time.sleep(_POLL_S)  # the readers may still hold its last words
        last = "\n".join(f"  {line}" for line in self._tail)
        return ServerFailed(f"{self.name} {problem}" + (f"; it said:\n{last}" if last else ""))


@contextlib.contextmanager
def _health_check(address: str) -> Iterator[Callable[[], bool]]:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    options = (
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
    )
    with grpc.insecure_channel(address, options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def serving() -> bool:
            try:
                reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=2.0)
            except grpc.RpcError:
                return False
            return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

        yield serving
