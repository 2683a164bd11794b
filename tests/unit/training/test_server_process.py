"""Server processes, with a stand-in that has a real health service."""

import time
from pathlib import Path

import pytest

from training.server_process import ServerFailed, ServerProcess

STAND_IN = """
import sys
from concurrent import futures
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
servicer = health.HealthServicer()
statuses = health_pb2.HealthCheckResponse
servicer.set("", statuses.SERVING if "--ready" in sys.argv else statuses.NOT_SERVING)
server = grpc.server(futures.ThreadPoolExecutor(2))
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(f"stand-in listening on 127.0.0.1:{port}", flush=True)
print("a last word", file=sys.stderr, flush=True)
if "--die" in sys.argv:
    sys.exit(4)
server.wait_for_termination()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch) -> str:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    return "stand_in"


def test_serving_then_stopped(module):
    with ServerProcess(module, ["--ready"]) as server:
        server.wait_serving(30)
        assert server.wait_listening(1).startswith("127.0.0.1:")
        assert server.exit_code is None
    assert server.exit_code is not None


def test_not_serving_is_an_error_with_its_last_words(module):
    with ServerProcess(module, []) as server:
        server.wait_listening(30)
        with pytest.raises(ServerFailed, match="is not SERVING after 1 s") as caught:
            server.wait_serving(1)
    assert "a last word" in str(caught.value)


def test_a_death_is_noticed_at_once(module):
    start = time.monotonic()
    with ServerProcess(module, ["--die"]) as server, pytest.raises(ServerFailed) as caught:
        server.wait_serving(60)
    assert "exit code 4" in str(caught.value)
    assert "a last word" in str(caught.value)
    assert time.monotonic() - start < 30


def test_a_module_that_does_not_exist(module):
    with ServerProcess("no_such_module", []) as server, pytest.raises(ServerFailed) as caught:
        server.wait_listening(30)
    assert "No module named no_such_module" in str(caught.value)


def test_one_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    code += "print('x listening on 127.0.0.1:1', flush=True)\ntime.sleep(60)\n"
    (tmp_path / "deaf.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    with ServerProcess("deaf", [], grace_s=0.2) as server:
        server.wait_listening(30)
    assert server.exit_code == -9
