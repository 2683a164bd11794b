"""`molora serve` with stand-ins for the two servers, as real processes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STAND_IN = """
import pathlib, signal, sys, time
name = {name!r}
here = pathlib.Path({folder!r})
(here / (name + ".flags")).write_text(" ".join(sys.argv[1:]))
def leave(*_):
    (here / (name + ".drained")).touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print(name, "listening on 127.0.0.1:7777", flush=True)
print(name, "complains", file=sys.stderr, flush=True)
while not (here / (name + ".die")).exists():
    time.sleep(0.02)
sys.exit(3)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory whose executor_service and router_service are stand-ins."""
    for name in ("executor_service", "router_service"):
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(STAND_IN.format(name=name, folder=str(tmp_path)))
    return tmp_path


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "clients.cli.app", "serve", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path) -> str:
    end = time.monotonic() + 30
    while not (path.exists() and (path.suffix != ".flags" or path.read_text())):
        assert time.monotonic() < end, f"{path.name} did not appear"
        time.sleep(0.02)
    return path.read_text()


def test_all_starts_both_and_passes_sigterm_on(folder):
    process = start(folder, "all", "--router-port", "0", "--", "--log-level", "debug")
    assert wait_for(folder / "router_service.flags") == (
        "--port 0 --executor 127.0.0.1:7777 --log-level debug"
    )
    assert wait_for(folder / "executor_service.flags") == "--port 50052 --log-level debug"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    for name in ("executor_service", "router_service"):
        assert f"{name} listening on 127.0.0.1:7777" in out
        assert f"{name} complains" in out
        assert (folder / f"{name}.drained").exists()


@pytest.mark.parametrize(
    ("dying", "left"),
    [("router_service", "executor_service"), ("executor_service", "router_service")],
)
def test_all_ends_with_the_first_that_dies(folder, dying, left):
    process = start(folder, "all")
    wait_for(folder / "router_service.flags")
    (folder / f"{dying}.die").touch()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 3
    assert f"{dying} ended with exit code 3" in errors
    assert (folder / f"{left}.drained").exists()


def test_all_reports_a_server_that_never_starts(folder):
    (folder / "executor_service" / "__main__.py").write_text("raise SystemExit('no model')")
    process = start(folder, "all")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "executor_service ended with exit code 1" in errors
    assert "no model" in errors
    assert "Traceback" not in errors
    assert not (folder / "router_service.flags").exists()


@pytest.mark.parametrize("name", ["executor", "router"])
@pytest.mark.parametrize("separator", [(), ("--",)])
def test_one_server_gets_every_flag_and_the_signal(folder, name, separator):
    process = start(folder, name, *separator, "--port", "0", "--help", "--lora-modules", "a=b")
    flags = wait_for(folder / f"{name}_service.flags")
    assert flags == "--port 0 --help --lora-modules a=b"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert (folder / f"{name}_service.drained").exists()
