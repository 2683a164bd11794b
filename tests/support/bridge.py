"""The bridge on a real socket, in a thread of this process."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from clients.web.server import bind, make_server
from clients.web.settings import WebSettings


@dataclass(frozen=True)
class Answered:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.raw.splitlines()]


@dataclass(frozen=True)
class RunningBridge:
    """A bridge that answers on `127.0.0.1:port`."""

    port: int
    requests: Collection[Any] = field(repr=False)
    """Those that are not done; one is done after its answer was read and its line was written."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answered:
        """Send one request; a body that is no bytes is sent as JSON."""
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, 30)) as client:
            client.request(method, path, raw, dict(headers or {}))
            reply = client.getresponse()
            lowered = {name.lower(): value for name, value in reply.getheaders()}
            return Answered(reply.status, lowered, reply.read())

    def post(self, path: str, body: Any, **headers: str) -> Answered:
        return self.ask("POST", path, body, headers)

    def get(self, path: str, **headers: str) -> Answered:
        return self.ask("GET", path, headers=headers)


@contextlib.contextmanager
def running_bridge(router: str, executor: str, **settings: Any) -> Iterator[RunningBridge]:
    """Serve on a free port until the body ends; every running request ends first."""
    checked = WebSettings(router=router, executor=executor, port=0, **settings)
    with bind(checked) as bound:
        server = make_server(checked)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            end = time.monotonic() + 30
            while not server.started:
                assert thread.is_alive(), "the bridge did not start"
                assert time.monotonic() < end
                time.sleep(0.01)
            yield RunningBridge(bound.getsockname()[1], server.server_state.tasks)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


class Log:
    """What a bridge of this process logs from now on."""

    def __init__(self, bridge: RunningBridge, capsys: pytest.CaptureFixture[str]) -> None:
        self._bridge = bridge
        self._capsys = capsys
        # A line is written just after its answer was sent: wait for those of earlier requests.
        self._read()

    def lines(self, count: int) -> list[Any]:
        """The lines since then, or since this was asked; there are so many."""
        lines = [json.loads(line) for line in self._read().splitlines()]
        assert len(lines) == count
        return lines

    def _read(self) -> str:
        """What was written, once no request runs."""
        until(lambda: not self._bridge.requests)
        captured = self._capsys.readouterr()
        return captured.err + captured.out


def until(condition: Callable[[], object]) -> None:
    """Wait until it is true."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
