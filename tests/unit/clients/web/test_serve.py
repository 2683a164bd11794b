"""`molora serve web` as a process: how it starts, says where, and ends."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.support.certificates import Authority
from tests.support.stub_services import StubServices, running_stub

Serve = Callable[..., subprocess.Popen[str]]

CERTS = Path(__file__).parents[2] / "service_chassis/tls"
TOKEN = "Quillabeth-Vantongeren"
COMMAND = (sys.executable, "-W", "error", "-m", "clients.cli.app", "serve", "web")


@pytest.fixture
def serve() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the verb with these flags; what still runs at the end is killed."""
    with contextlib.ExitStack() as stack:

        def start(*flags: str) -> subprocess.Popen[str]:
            pipe = subprocess.PIPE
            command = [*COMMAND, "--port", "0", *flags]
            process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("web listening on "), process.communicate()
    return line.split()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_and_ends_well(
    serve: Serve, stub: StubServices, number: signal.Signals
) -> None:
    process = serve("--router", stub.address, "--executor", stub.address)
    url = url_of(process)
    assert url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(f"{url}/health", timeout=20) as reply:
        assert json.load(reply)["status"] == "serving"
    process.send_signal(number)
    out, errors = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    [line] = [json.loads(line) for line in errors.splitlines()]
    assert (line["path"], line["status"]) == ("/health", 200)


def test_tls_and_the_token_of_the_bridge(serve: Serve, stub: StubServices, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(f"{TOKEN}\n")
    own = ("--tls-cert", str(CERTS / "server.pem"), "--tls-key", str(CERTS / "server.key"))
    asks = ("--tls-client-ca", str(CERTS / "ca.pem"), "--token-file", str(token_file))
    process = serve(*own, *asks, "--router", stub.address, "--executor", stub.address)
    url = url_of(process)
    assert url.startswith("https://")
    stranger = ssl.create_default_context(cafile=str(CERTS / "ca.pem"))
    with pytest.raises(OSError, match=r"certificate required|closed connection|reset"):
        urllib.request.urlopen(f"{url}/health", timeout=20, context=stranger).read()
    assert not stub.calls
    known = ssl.create_default_context(cafile=str(CERTS / "ca.pem"))
    known.load_cert_chain(CERTS / "client.pem", CERTS / "client.key")
    urllib.request.urlopen(f"{url}/health", timeout=20, context=known).close()
    assert stub.seen("ListExperts")[0].metadata["authorization"] == f"Bearer {TOKEN}"
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert TOKEN not in errors


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--host", "0.0.0.0"), "beyond loopback without TLS"),
        (("--allow-origin", "*"), "--allow-origin * is no origin"),
        (("--max-body-bytes", "1"), "--max-body-bytes 1"),
    ],
)
def test_what_cannot_be_is_usage(serve: Serve, flags: tuple[str, ...], said: str) -> None:
    process = serve(*flags)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert said in errors
    assert "Traceback" not in errors


def test_a_port_that_is_taken(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = serve("--port", str(port))
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in errors
    assert "Traceback" not in errors


def test_it_shows_the_services_a_certificate(serve: Serve, tmp_path: Path) -> None:
    authority = Authority()
    server, bridge = authority.issue(), authority.issue("bridge")
    contents = {"ca": authority.pem, "cert": bridge.certificate, "key": bridge.key}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    trust = ("--tls-ca", str(tmp_path / "ca"), "--services-cert", str(tmp_path / "cert"))
    trust += ("--services-key", str(tmp_path / "key"))
    pair = [(server.key, server.certificate)]
    with running_stub(grpc.ssl_server_credentials(pair, authority.pem, True)) as stub:
        process = serve(*trust, "--router", stub.address, "--executor", stub.address)
        with urllib.request.urlopen(f"{url_of(process)}/health", timeout=20) as reply:
            assert json.load(reply)["status"] == "serving"


def test_without_its_extra_it_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['starlette'] = None; "
        "from clients.cli.app import main; sys.argv = ['molora', 'serve', 'web']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "pip install 'molora[web]'" in done.stderr
