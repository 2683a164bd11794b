"""What importing a room loads, measured in a fresh interpreter.

import-linter sees every import statement; these see what runs, so an import in a function is fine.
"""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "peft", "onnxruntime", "onnx", "PIL", "numpy", "training"}


def loaded_by(module: str) -> set[str]:
    """Packages outside the standard library that `import module` brings in.

    `google` is shared by several distributions, so its packages are told apart: `google.rpc`.
    """
    program = (
        "import sys, json; before = set(sys.modules); "
        f"import {module}; "
        "names = [name.split('.') for name in set(sys.modules) - before]; "
        "print(json.dumps(['.'.join(name[:1 + (name[0] == 'google')]) for name in names"
        " if name[0] not in sys.stdlib_module_names]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    return set(json.loads(done.stdout))


def test_sdk_needs_only_the_stubs_grpcio_and_protobuf():
    allowed = {"molora_client", "molora", "grpc", "google", "google.protobuf", "google._upb"}
    # grpcio looks for its companions itself and loads those that happen to be installed.
    allowed |= {"grpc_health", "grpc_reflection", "grpc_tools"}
    allowed |= {"cython_runtime", "typing_extensions"}
    loaded = {name for name in loaded_by("molora_client") if not name.startswith("_")}
    assert loaded <= allowed


@pytest.mark.parametrize("stubs", ["types", "executor", "router", "admin"])
def test_stubs_need_only_grpcio_and_protobuf(stubs):
    loaded = loaded_by(f"molora.v1.{stubs}_pb2_grpc")
    assert not loaded & (HEAVY | {"service_chassis", "molora_client"})


def test_command_line_starts_without_the_heavy_rooms():
    assert not loaded_by("clients.cli.tree") & (HEAVY | {"executor_service", "router_service"})


def test_bridge_needs_the_sdk_and_no_other_room():
    rooms = {"service_chassis", "executor_service", "router_service", "training", "pydantic"}
    assert not loaded_by("clients.web.server") & (HEAVY | rooms)


def test_router_runs_without_torch():
    assert not loaded_by("router_service.server") & {"torch", "transformers", "peft", "PIL"}


def test_scheduler_and_nouns_of_the_executor_run_without_torch():
    for module in ("engine.scheduler", "core", "errors", "settings"):
        assert "torch" not in loaded_by(f"executor_service.{module}")
