"""The Dockerfile's install lines, run in clean environments, and the services started from them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import venv
from importlib import metadata
from pathlib import Path

import pytest

from tests.support.dockerfile import NO_INDEX, STAGES, last
from tests.support.wheels import built_wheel

INSTALL_S = 600
START_S = 120


class Clean:
    """An environment with pip and nothing else, in which lines of the Dockerfile are run.

    Torch is held to this environment's version, which was chosen for this machine.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "venv", with_pip=True)
        constraint = folder / "constraint.txt"
        constraint.write_text(f"torch=={metadata.version('torch').partition('+')[0]}\n")
        self.environ = {
            "PATH": f"{folder / 'venv' / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder),
            "PIP_CONSTRAINT": str(constraint),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            **{name: value for name, value in os.environ.items() if name.startswith("PIP_")},
        }

    def run(self, command: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
            check=False,
        )

    def install(self, stage: str) -> None:
        """Every install line of a stage, in its order."""
        for name, rest in STAGES[stage]:
            if name == "RUN" and "pip install" in rest:
                line = re.sub(r"--mount=\S+ ", "", rest)
                line = line.replace("/wheels", str(built_wheel().parent)).replace("/app", "app")
                done = self.run(["bash", "-uc", f"TORCH_INDEX=; {line}"])
                if done.returncode and any(sign in done.stderr for sign in NO_INDEX):
                    pytest.skip("needs a package index: pip reaches none here")
                assert done.returncode == 0, done.stderr

    def has(self, module: str, **environ: str) -> bool:
        return self.run(["python3", "-c", f"import {module}"], **environ).returncode == 0


def test_the_router_starts_without_torch(tmp_path: Path) -> None:
    clean = Clean(tmp_path)
    clean.install("router-packages")
    packages = {"PYTHONPATH": str(tmp_path / "app")}
    assert clean.has("molora_client, onnxruntime, numpy, grpc, typer", **packages)
    for heavy in ("torch", "transformers", "safetensors", "PIL", "peft", "onnx"):
        assert not clean.has(heavy, **packages)
    total_bytes = sum(path.stat().st_size for path in (tmp_path / "app").rglob("*"))
    assert 150e6 < total_bytes < 250e6
    entry = json.loads(last("router", "ENTRYPOINT"))
    done = clean.run([*entry, "--", "--check-config"], **packages)
    assert done.returncode == 0, done.stderr


def test_the_executor_serves_and_the_rest_fits_beside_it(tmp_path: Path) -> None:
    clean = Clean(tmp_path)
    clean.install("executor")
    assert clean.has("torch")
    assert not clean.has("onnxruntime")
    serve(clean)
    clean.install("all")
    assert clean.has("onnxruntime, starlette")
    done = clean.run([*json.loads(last("all", "ENTRYPOINT")), "--help"])
    assert done.returncode == 0, done.stderr


def serve(clean: Clean) -> None:
    """Starts the executor's entry point and asks as the image's health check does."""
    entry = json.loads(last("executor", "ENTRYPOINT"))
    probe = json.loads(last("executor", "HEALTHCHECK").partition("CMD ")[2])
    log = clean.folder / "executor.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [*entry, "--", "--port", "0", "--metrics-port", "0"],
            cwd=clean.folder,
            env=clean.environ,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s and server.poll() is None:
            found = re.search(r"listening on (\S+)", log.read_text())
            if found and clean.run([*probe[:-1], found[1]]).returncode == 0:
                break
            time.sleep(0.5)
        else:
            pytest.fail(f"the executor does not serve: {log.read_text()[-2000:]}")
    finally:
        server.terminate()
        assert server.wait(30) == 0
