"""Build hook: generates the gRPC stubs from protos/ (also for `pip install -e`).

Knows nothing of what the messages mean.
"""

from __future__ import annotations

import importlib.resources
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent


def generate_stubs(out: Path) -> None:
    """Write `*_pb2.py`, `*_pb2_grpc.py` and their `.pyi` for every proto under protos/.

    Args:
        out: Root of the generated package tree; `molora/v1/` is created below it.

    Raises:
        RuntimeError: protoc refused a file; its message was printed.
    """
    from grpc_tools import protoc

    out.mkdir(parents=True, exist_ok=True)
    protos = sorted(
        path.relative_to(ROOT / "protos").as_posix() for path in (ROOT / "protos").rglob("*.proto")
    )
    scripts = Path(sys.executable).parent
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    arguments = [
        "protoc",
        f"-I{ROOT / 'protos'}",
        f"-I{well_known}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
    ]
    for kind in ("mypy", "mypy_grpc"):
        plugin = _plugin(f"protoc-gen-{kind}", scripts)
        arguments += [f"--plugin=protoc-gen-{kind}={plugin}", f"--{kind}_out=quiet:{out}"]
    if protoc.main([*arguments, *protos]) != 0:
        raise RuntimeError("protoc failed; its message is above. Run `buf lint` for a clearer one.")


def _plugin(name: str, scripts: Path) -> Path:
    """The protoc plugin's script; an isolated build keeps it outside the interpreter's folder."""
    import os
    import shutil

    found = shutil.which(name, path=os.pathsep.join([str(scripts), os.environ.get("PATH", "")]))
    if found is None:
        raise RuntimeError(f"{name} not found: pip install mypy-protobuf")
    return Path(found)


class StubsHook(BuildHookInterface[Any]):
    """Hatchling's entry point."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate in place before the wheel (or the editable install) is put together."""
        generate_stubs(ROOT / "protos")


if __name__ == "__main__":
    generate_stubs(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "protos")
