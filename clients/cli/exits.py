"""How a failed verb ends: one line on stderr with a remedy, and an exit code.

Knows which errors the rooms raise for their callers; knows no verb.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import grpc
import typer

from clients.cli import output
from molora_client import MoloraError

BAD_INPUT = 2
FIRST_GRPC_EXIT_CODE = 64
_SHOWN = ("code", "reason", "message", "metadata", "remedy", "retry_after_s", "request_id")


@contextlib.contextmanager
def failed_calls(as_json: bool) -> Iterator[None]:
    """Turns a failed call into 64 + its gRPC code, as grpcurl does.

    Args:
        as_json: Print the error as JSON.

    Raises:
        typer.Exit: In place of a MoloraError.
    """
    try:
        yield
    except MoloraError as error:
        if as_json:
            output.error_json({"error": {name: getattr(error, name) for name in _SHOWN}})
        else:
            output.error(f"{str(error).rstrip('.')}. {error.remedy}")
        number: int = grpc.StatusCode[error.code].value[0]
        raise typer.Exit(FIRST_GRPC_EXIT_CODE + number) from None


@contextlib.contextmanager
def refused_input() -> Iterator[None]:
    """Turns what the training rooms refuse into 2: their ValueErrors say what to do.

    Raises:
        typer.Exit: In place of a ValueError or OSError.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        output.error(str(error))
        raise typer.Exit(BAD_INPUT) from None
