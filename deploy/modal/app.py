"""Serving and training on Modal, on the volume that holds the checkpoints.

    modal run deploy/modal/app.py::fetch_base
    modal run deploy/modal/app.py::train_router --records /checkpoints/routing/train.jsonl
    modal run deploy/modal/app.py::molora --command "train expert --help"
    modal run --detach deploy/modal/app.py::serve
    modal run --detach deploy/modal/app.py::serve_executor

Knows Modal, the volume and our commands; knows no model and no message.

TLS ends at Modal's tunnel and anybody may reach it, so the secret `molora-tokens` has to hold
MOLORA_TOKENS: lines of a role and a token, as in a tokens file. Of `serve` only the router is to be
reached; clients use Predict.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import modal

if TYPE_CHECKING:
    from training.server_process import ServerProcess

VOLUME = "claimhawk-checkpoints"
MOUNT = "/checkpoints"
BASE = f"{MOUNT}/Qwen3-VL-8B-Instruct"
BASE_NAME = "Qwen/Qwen3-VL-8B-Instruct"
BUNDLE = f"{MOUNT}/router"
# What these variables are where the environment of `modal run` does not say.
EXPERTS: Mapping[str, str] = {
    "LORA_CALENDAR": f"{MOUNT}/calendar-tasks",
    "LORA_CLAIM": f"{MOUNT}/claim-window",
}
GPU = os.environ.get("MOLORA_MODAL_GPU", "H100")
PORT = 8443
DAY_S = 24 * 60 * 60
START_S = 1800.0

# In the container this file is /root/app.py, and the rooms are installed.
ROOT = Path(__file__).resolve().parents[2] if modal.is_local() else Path("/src")
PARTS = (
    *("LICENSE", "README.md", "hatch_build.py", "pyproject.toml"),
    *("clients", "executor_service", "miniature", "protos"),
    *("router_service", "service_chassis", "training"),
)


def image(extra: str) -> modal.Image:
    """An image with torch and an extra of molora; built when it is first used."""
    made = modal.Image.debian_slim(python_version="3.12").pip_install("torch>=2.11")
    for part in PARTS:
        if (ROOT / part).is_dir():
            ignored = ["**/__pycache__", "**/*_pb2*"]
            made = made.add_local_dir(ROOT / part, f"/src/{part}", copy=True, ignore=ignored)
        else:
            made = made.add_local_file(ROOT / part, f"/src/{part}", copy=True)
    own = {key: value for key, value in os.environ.items() if key.startswith("LORA_")}
    return made.run_commands(f"pip install '/src[{extra}]'").env({**EXPERTS, **own})


app = modal.App("molora")
volume = modal.Volume.from_name(VOLUME)
serving, training = image("executor,router"), image("training")
here = {MOUNT: volume}
secrets = [modal.Secret.from_name("molora-tokens", required_keys=["MOLORA_TOKENS"])]


@app.function(
    image=serving, gpu=GPU, volumes=here, secrets=secrets, timeout=DAY_S, max_containers=1
)
def serve(model: str = BASE, bundle: str = BUNDLE) -> int:
    """Run both services until one ends or Modal stops the container.

    Args:
        model: Checkpoint directory on the volume.
        bundle: The router's folder on the volume.

    Returns:
        The exit code of the server that ended.
    """
    from training.server_process import ServerProcess

    with contextlib.ExitStack() as stack:
        tokens = stack.enter_context(_tokens_file())
        executor = stack.enter_context(_executor(model))
        flags = ["--bundle", bundle, "--executor", executor.wait_listening(START_S)]
        flags += ["--port", "0", "--tokens-file", tokens]
        own = {key: value for key, value in os.environ.items() if key != "MOLORA_TOKENS"}
        router = stack.enter_context(
            ServerProcess("router_service", flags, echo=_say, environment=own)
        )
        address = stack.enter_context(_reachable(router))
        _say(f"router at {address}, with TLS and a token: Molora(router=..., tls=Tls())")
        return _until_one_ends(executor, router)


@app.function(
    image=serving, gpu=GPU, volumes=here, secrets=secrets, timeout=DAY_S, max_containers=1
)
def serve_executor(model: str = BASE) -> int:
    """Run the executor alone, for a router elsewhere, until it ends or Modal stops the container.

    Args:
        model: Checkpoint directory on the volume.

    Returns:
        The exit code of the server.
    """
    with (
        _tokens_file() as tokens,
        _executor(model, "--tokens-file", tokens) as executor,
        _reachable(executor) as address,
    ):
        _say(f"executor at {address}, with TLS and a token: molora serve router --executor ...")
        return _until_one_ends(executor)


@app.function(image=training, gpu=GPU, volumes=here, timeout=DAY_S)
def train_router(
    records: str, out: str = BUNDLE, model: str = BASE, cache: str = f"{MOUNT}/features"
) -> int:
    """Features of labelled records under the experts of the volume, then the router's head.

    Args:
        records: JSONL file on the volume.
        out: Gets the bundle, in place of the one that is there.
        model: Checkpoint directory on the volume.
        cache: Gets the features, and keeps them for the next time.

    Returns:
        0, or the exit code of the step that failed.
    """
    with _executor(model) as executor:
        address = executor.wait_listening(START_S)
        executor.wait_serving(START_S)
        code = _run("train", "features", records, cache, "--executor", address)
    if code == 0:
        # No run is written over another one; what is served stays until there is something new.
        fresh = f"{out}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        code = _run("train", "stage1", "--features", cache, "--out", fresh)
        if code == 0:
            shutil.rmtree(out, ignore_errors=True)
            os.replace(fresh, out)
    volume.commit()
    return code


@app.function(image=training, gpu=GPU, volumes=here, timeout=DAY_S)
def molora(command: str) -> int:
    """Any `molora` command beside the volume; what it writes there is kept.

    Args:
        command: Without `molora`, as typed in a shell.

    Returns:
        Its exit code.
    """
    code = _run(*shlex.split(command))
    volume.commit()
    return code


@app.function(image=serving, volumes=here, timeout=DAY_S)
def fetch_base(name: str = BASE_NAME, out: str = BASE) -> None:
    """Download a checkpoint to the volume.

    Args:
        name: Of its repository.
        out: Directory on the volume.
    """
    from huggingface_hub import snapshot_download

    snapshot_download(name, local_dir=out, allow_patterns=["*.json", "*.jinja", "*.safetensors"])
    volume.commit()


@contextlib.contextmanager
def relayed(port: int, target: str) -> Iterator[None]:
    """Pass bytes between a port of the container and a server on its loopback.

    Modal's examples listen on every address of the container; our servers do that with TLS only.

    Args:
        port: Where the tunnel arrives.
        target: `host:port` on loopback.
    """
    host, _, number = target.rpartition(":")
    listener = socket.create_server(("", port))

    def accept() -> None:
        while True:
            try:
                outside, _ = listener.accept()
            except OSError:
                return
            try:
                inside = socket.create_connection((host, int(number)))
            except OSError:
                outside.close()
                continue
            threading.Thread(target=_join, args=(outside, inside), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        # Closing alone does not wake a thread that waits in accept.
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def _join(outside: socket.socket, inside: socket.socket) -> None:
    """Pass bytes both ways, until both ends have no more."""
    with outside, inside:
        back = threading.Thread(target=_copy, args=(inside, outside), daemon=True)
        back.start()
        _copy(outside, inside)
        back.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(2**16):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def _tokens_file() -> Iterator[str]:
    """The secret as a file that the server alone can read."""
    tokens = os.environ.get("MOLORA_TOKENS", "")
    if not tokens.strip():
        raise SystemExit("molora: the tunnel is public; put MOLORA_TOKENS into its secret")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens"
        path.touch(mode=0o600)
        path.write_text(tokens, encoding="utf-8")
        yield str(path)


@contextlib.contextmanager
def _reachable(server: ServerProcess) -> Iterator[str]:
    """Let the tunnel arrive at a server once it serves; the address outside, where TLS ends."""
    with relayed(PORT, server.wait_listening(START_S)):
        server.wait_serving(START_S)
        with modal.forward(PORT, h2_enabled=True) as tunnel:
            host, port = tunnel.tls_socket
            yield f"{host}:{port}"


def _executor(model: str, *more: str) -> ServerProcess:
    from training.server_process import ServerProcess

    # The secret is the router's alone.
    own = {key: value for key, value in os.environ.items() if key != "MOLORA_TOKENS"}
    flags = ["--model", model, "--port", "0", *more]
    return ServerProcess("executor_service", flags, echo=_say, environment={**EXPERTS, **own})


def _until_one_ends(*servers: ServerProcess) -> int:
    """Wait; a server that ends by itself is a failure, whatever it says."""
    while True:
        for server in servers:
            if server.exit_code is not None:
                return abs(server.exit_code) or 1
        time.sleep(0.2)


def _run(*arguments: str) -> int:
    command = [sys.executable, "-m", "clients.cli.app", *arguments]
    return subprocess.run(command, check=False).returncode  # noqa: S603 - our own interpreter


def _say(line: str) -> None:
    print(line, flush=True)
