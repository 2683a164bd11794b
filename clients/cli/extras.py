"""What a verb says where an extra of the package is not installed.

Knows the packages that the extras bring; knows no verb.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from clients.cli import output

WEB = frozenset({"starlette", "uvicorn"})
TRAINING = frozenset(
    {
        "PIL", "accelerate", "grpc_health", "grpc_reflection", "jinja2", "numpy", "onnx",
        "onnxruntime", "onnxscript", "peft", "prometheus_client", "pydantic", "pydantic_settings",
        "safetensors", "structlog", "tensorboardX", "tokenizers", "torch", "transformers", "yaml",
    }
)  # fmt: skip


@contextlib.contextmanager
def needing(extra: str, packages: Collection[str]) -> Iterator[None]:
    """Turns a missing package of an extra into 1, after one line on stderr.

    Args:
        extra: Its name.
        packages: What it brings, as it is imported.

    Raises:
        typer.Exit: In place of a ModuleNotFoundError of one of these; that of another module, such
            as one of our own, is not changed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in packages:
            raise
        output.error(f"{missing} is not installed: pip install 'molora[{extra}]'")
        raise typer.Exit(1) from None


class TrainingCommand(TyperCommand):
    """A verb that needs the extra `[training]`."""

    def invoke(self, ctx: Any) -> Any:
        """Runs it."""
        with needing("training", TRAINING):
            return super().invoke(ctx)


class TrainingGroup(TyperGroup):
    """Verbs that need the extra `[training]`."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the one that was named."""
        with needing("training", TRAINING):
            return super().invoke(ctx)
