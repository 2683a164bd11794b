"""deploy/modal with `.local()`: the real package where it is installed, else a stub.

The services are stand-ins; the router's answers health over a real socket.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support import modal_stub
from tests.support.addresses import free_address

# What the real package says of every `.local()` beside a volume.
pytestmark = pytest.mark.filterwarnings("ignore:The .* function is executing locally:UserWarning")

APP = Path(__file__).parents[3] / "deploy/modal/app.py"
TELL = """
import json, os, pathlib, sys, time
here = pathlib.Path({folder!r})
name = {name!r}
kept = {{key: value for key, value in os.environ.items() if key.startswith(("LORA_", "MOLORA_"))}}
tokens = [pathlib.Path(flag).read_text() for flag in sys.argv if flag.endswith("/tokens")]
(here / (name + ".json")).write_text(json.dumps([sys.argv[1:], kept, tokens]))
"""
WAIT = """
while not (here / (name + ".die")).exists():
    time.sleep(0.02)
sys.exit(5)
"""
EXECUTOR = "print('executor listening on 127.0.0.1:7777', flush=True)"
# Stands in for whichever server is waited for.
SERVING = """
import grpc
from concurrent import futures
from grpc_health.v1 import health, health_pb2_grpc
server = grpc.server(futures.ThreadPoolExecutor(2))
servicer = health.HealthServicer()
servicer.set("", 1)
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(f"{name} listening on 127.0.0.1:{port}", flush=True)
"""
CLI = """
import pathlib, sys
with (pathlib.Path({folder!r}) / "commands").open("a") as out:
    print(*sys.argv[1:], file=out)
if "--out" in sys.argv:
    made = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
    made.mkdir()
    (made / "new").touch()
sys.exit(4 if "broken" in sys.argv else 0)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory whose services and command are stand-ins."""
    for name, body in (("executor_service", EXECUTOR), ("router_service", SERVING)):
        code = TELL.format(folder=str(tmp_path), name=name) + body + WAIT
        write(tmp_path / name, "__main__.py", code)
    write(tmp_path / "clients", "", "")
    write(tmp_path / "clients/cli", "app.py", CLI.format(folder=str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    for name in ("LORA_CALENDAR", "LORA_CLAIM"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write(package: Path, file: str, code: str) -> None:
    package.mkdir()
    (package / "__init__.py").touch()
    if file:
        (package / file).write_text(code)


@pytest.fixture
def app(monkeypatch):
    if importlib.util.find_spec("modal") is None:
        monkeypatch.setitem(sys.modules, "modal", modal_stub.module())
    spec = importlib.util.spec_from_file_location("molora_modal_app", APP)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def commits(app, monkeypatch):
    made = []
    monkeypatch.setattr(app, "volume", SimpleNamespace(commit=lambda: made.append("commit")))
    return made


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < end, f"{path.name} did not appear"
        time.sleep(0.02)


@pytest.fixture
def forwarded(app, place, monkeypatch):
    """The calls of `modal.forward`, with the port that the app relays from."""
    made = []
    monkeypatch.setattr(app, "PORT", int(free_address().rpartition(":")[2]))

    @contextlib.contextmanager
    def forward(port, *, h2_enabled):
        made.append((port, h2_enabled))
        (place / "forwarded").write_text("yes")
        yield SimpleNamespace(tls_socket=("x.modal.host", 443))

    monkeypatch.setattr(app.modal, "forward", forward)
    return made


def exit_code(app, place, function, dying: str) -> int:
    """Run until the tunnel is there and the server behind it answers; then let one end."""
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(function.local)
        try:
            wait_for(place / "forwarded")
            with grpc.insecure_channel(f"127.0.0.1:{app.PORT}") as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        finally:
            (place / f"{dying}.die").touch()
        return serving.result(timeout=60)


def test_serve(app, place, forwarded, monkeypatch):
    monkeypatch.setenv("MOLORA_TOKENS", "infer secret-token\n")
    monkeypatch.setenv("LORA_CLAIM", "/checkpoints/other-claim")
    assert exit_code(app, place, app.serve, "router_service") == 5
    assert forwarded == [(app.PORT, True)]
    flags, environ, _ = json.loads((place / "executor_service.json").read_text())
    assert flags == ["--model", "/checkpoints/Qwen3-VL-8B-Instruct", "--port", "0"]
    assert environ == {
        "LORA_CALENDAR": "/checkpoints/calendar-tasks",
        "LORA_CLAIM": "/checkpoints/other-claim",
    }, "the defaults, and the environment over them; the secret is not the executor's"
    flags, environ, tokens = json.loads((place / "router_service.json").read_text())
    assert flags[:4] == ["--bundle", "/checkpoints/router", "--executor", "127.0.0.1:7777"]
    assert "--host" not in flags
    assert tokens == ["infer secret-token\n"]
    assert "MOLORA_TOKENS" not in environ


def test_serve_executor(app, place, forwarded, monkeypatch):
    monkeypatch.setenv("MOLORA_TOKENS", "infer secret-token\n")
    name = "executor_service"
    code = TELL.format(folder=str(place), name=name) + SERVING + WAIT
    (place / name / "__main__.py").write_text(code)
    assert exit_code(app, place, app.serve_executor, name) == 5
    assert forwarded == [(app.PORT, True)]
    flags, environ, tokens = json.loads((place / f"{name}.json").read_text())
    assert flags[:4] == ["--model", "/checkpoints/Qwen3-VL-8B-Instruct", "--port", "0"]
    assert tokens == ["infer secret-token\n"]
    assert "MOLORA_TOKENS" not in environ
    assert not (place / "router_service.json").exists()


@pytest.mark.parametrize("function", ["serve", "serve_executor"])
def test_a_public_tunnel_needs_tokens(app, place, monkeypatch, function):
    monkeypatch.delenv("MOLORA_TOKENS", raising=False)
    with pytest.raises(SystemExit, match="the tunnel is public"):
        getattr(app, function).local()
    assert not (place / "executor_service.json").exists()


def test_train_router(app, place, commits, monkeypatch):
    @contextlib.contextmanager
    def executor(model):
        yield SimpleNamespace(
            wait_listening=lambda _: f"there:{model}", wait_serving=lambda _: None
        )

    monkeypatch.setattr(app, "_executor", executor)
    (place / "out").mkdir()
    (place / "out" / "old").touch()
    assert app.train_router.local("r.jsonl", "out", "base", "cache") == 0
    assert [path.name for path in (place / "out").iterdir()] == ["new"]
    assert (place / "commands").read_text().splitlines() == [
        "train features r.jsonl cache --executor there:base",
        "train stage1 --features cache --out out.new",
    ]
    assert app.train_router.local("broken") == 4
    assert (place / "out" / "new").exists()
    assert (place / "commands").read_text().count("stage1") == 1
    assert commits == ["commit"] * 2, "what was extracted is kept all the same"


def test_any_command(app, place, commits):
    assert app.molora.local("train expert --name 'a b'") == 0
    assert (place / "commands").read_text() == "train expert --name a b\n"
    assert commits == ["commit"]


def test_what_the_image_needs_is_there(app):
    for part in app.PARTS:
        assert (app.ROOT / part).exists()
    assert app.VOLUME == "claimhawk-checkpoints"
