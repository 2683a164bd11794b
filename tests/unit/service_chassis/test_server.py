import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from molora.v1 import router_pb2, router_pb2_grpc

PROGRAM = Path(__file__).with_name("server_program.py")
# Made for these tests with a CA whose key is gone; valid for a hundred years.
TLS = Path(__file__).with_name("tls")
TLS_FLAGS = ("--tls-cert", str(TLS / "server.pem"), "--tls-key", str(TLS / "server.key"))


def command(behaviour: str, *flags: str) -> list[str]:
    return [sys.executable, "-W", "error", str(PROGRAM), behaviour, *flags]


def run_to_end(behaviour: str, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(behaviour, *flags), capture_output=True, text=True, timeout=60, check=False
    )


class Process:
    """A server process that has printed its ports."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process
        listening, metrics = process.stdout.readline(), process.stdout.readline()
        assert listening.startswith("router listening on 127.0.0.1:")
        assert metrics.startswith("router metrics on 127.0.0.1:")
        self.address = listening.split()[-1]
        self.metrics_url = f"http://{metrics.split()[-1]}/metrics"

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


@contextlib.contextmanager
def started(behaviour: str, *flags: str) -> Iterator[Process]:
    process = subprocess.Popen(
        command(behaviour, *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield Process(process)
    finally:
        process.kill()
        process.communicate()


def route(channel: grpc.Channel, seconds: float):
    request = router_pb2.RouteRequest(prompt={"text": str(seconds)})
    return router_pb2_grpc.RouterServiceStub(channel).Route(request, timeout=20)


def wait_for_metric(server: Process, sample: str) -> str:
    """All metrics, once they show this sample; a call's counts may come after its answer."""
    for _ in range(200):
        with urllib.request.urlopen(server.metrics_url, timeout=10) as response:
            text = response.read().decode()
        if sample in text:
            return text
        time.sleep(0.05)
    raise AssertionError(f"{sample} never came")


def wait_until_running(server: Process) -> None:
    """Until the server has begun to answer a Route."""
    service = "molora.v1.RouterService"
    sample = f'grpc_server_started_total{{grpc_method="Route",grpc_service="{service}"}} 1.0'
    wait_for_metric(server, sample)


def wait_until_serving(channel: grpc.Channel) -> None:
    grpc.channel_ready_future(channel).result(timeout=20)
    stub = health_pb2_grpc.HealthStub(channel)
    deadline = time.monotonic() + 20
    while stub.Check(health_pb2.HealthCheckRequest()).status != 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_drain_lets_running_calls_end_and_exits_0():
    with started("watching") as server, grpc.insecure_channel(server.address) as channel:
        wait_until_serving(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(route, channel, 1.0)
            wait_until_running(server)
            server.process.send_signal(signal.SIGTERM)
            assert [answer.status for answer in watch] == [
                health_pb2.HealthCheckResponse.NOT_SERVING
            ]
            with (
                grpc.insecure_channel(server.address) as late,
                pytest.raises(grpc.RpcError) as caught,
            ):
                route(late, 0)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert running.result().executor == "here"
        code, out, err = server.end()
    assert code == 0
    assert out == "draining\n"
    assert all(line.startswith("{") for line in err.splitlines())


def test_grace_ends_and_second_signal_cuts_it_short():
    for flags, signals, at_most_s in (
        (("--drain-grace-s", "0.3"), 1, 5),
        (("--drain-grace-s", "30"), 2, 5),
    ):
        with started("plain", *flags) as server, grpc.insecure_channel(server.address) as channel:
            wait_until_serving(channel)
            with ThreadPoolExecutor(1) as pool:
                running = pool.submit(route, channel, 15)
                wait_until_running(server)
                begun = time.monotonic()
                for _ in range(signals):
                    server.process.send_signal(signal.SIGTERM)
                    time.sleep(0.3)
                with pytest.raises(grpc.RpcError) as caught:
                    running.result()
                assert time.monotonic() - begun < at_most_s
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert server.end()[0] == 0


def test_sigint_drains_too():
    with started("plain") as server:
        server.process.send_signal(signal.SIGINT)
        assert server.end()[0] == 0


@pytest.mark.parametrize("flag", ["--port", "--metrics-port"])
def test_port_in_use_exits_1_and_says_which(flag):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_to_end("plain", flag, str(port))
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("router: ")]
    assert f"127.0.0.1:{port}" in line
    assert "choose another port" in line


def test_two_servers_cannot_share_a_port():
    with started("plain") as server:
        port = server.address.rpartition(":")[2]
        assert run_to_end("plain", "--port", port).returncode == 1


def test_unlisted_method_refuses_to_start():
    done = run_to_end("unlisted")
    assert done.returncode == 1
    assert "/molora.v1.RouterService/GetRouterInfo" in done.stderr


def test_startup_error_gives_its_exit_code():
    done = run_to_end("unloadable")
    assert done.returncode == 3
    assert "router: there is no model; give one\n" in done.stderr


def test_ready_that_breaks_exits_1_without_its_text():
    done = run_to_end("broken")
    assert done.returncode == 1
    assert "ValueError" in done.stderr
    assert "secret text" not in done.stderr


def test_metrics_are_exposed_on_loopback():
    with started("plain") as server, grpc.insecure_channel(server.address) as channel:
        wait_until_serving(channel)
        route(channel, 0)
        text = wait_for_metric(
            server, 'grpc_server_handled_total{grpc_code="OK",grpc_method="Route"'
        )
    assert "process_resident_memory_bytes" in text


def credentials(client: bool) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        (TLS / "ca.pem").read_bytes(),
        (TLS / "client.key").read_bytes() if client else None,
        (TLS / "client.pem").read_bytes() if client else None,
    )


def test_tls():
    with started("plain", *TLS_FLAGS) as server:
        with grpc.secure_channel(server.address, credentials(client=False)) as channel:
            wait_until_serving(channel)
            assert route(channel, 0).executor == "here"
        with (
            grpc.insecure_channel(server.address) as plain,
            pytest.raises(grpc.RpcError) as caught,
        ):
            route(plain, 0)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_mutual_tls_wants_a_client_certificate():
    with started("plain", *TLS_FLAGS, "--tls-client-ca", str(TLS / "ca.pem")) as server:
        with grpc.secure_channel(server.address, credentials(client=True)) as channel:
            wait_until_serving(channel)
            assert route(channel, 0).executor == "here"
        with (
            grpc.secure_channel(server.address, credentials(client=False)) as stranger,
            pytest.raises(grpc.RpcError) as caught,
        ):
            route(stranger, 0)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
