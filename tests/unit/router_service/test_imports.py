"""The router runs without torch and without the training stack."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import sys, pkgutil, importlib, router_service
for module in pkgutil.iter_modules(router_service.__path__, "router_service."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
import router_service.__main__
heavy = ("torch", "transformers", "peft", "onnx", "PIL", "executor_service", "training")
print([name for name in heavy if name in sys.modules])
"""


def test_no_module_of_the_router_imports_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
