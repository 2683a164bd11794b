"""From a request's bytes to what is asked. Knows HTTP bodies and base64; knows no service."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from clients.web.errors import BridgeError
from molora_client import RoutingMode

BODY_TIMEOUT_S = 30.0
_DATA_URL = re.compile(r"data:image/(?:png|jpeg|jpg);base64,", re.IGNORECASE)
# Line breaks are how the usual command-line encoders wrap.
_WHITE_SPACE = str.maketrans("", "", " \t\r\n")


@dataclass(frozen=True)
class Ask:
    """One question about one screen.

    Attributes:
        prompt: The instruction.
        screen: The bytes of the image file; that they are one is for the executor to say.
        label: The expert to force, by its integer label.
        adapter: The expert to force, by name.
        mode: How the router is to reduce its gates; None for its default.
        base_only: No expert at all.
    """

    prompt: str = field(repr=False)
    screen: bytes = field(repr=False)
    label: int | None = None
    adapter: str | None = None
    mode: RoutingMode | None = None
    base_only: bool = False


async def read_body(request: Request, limit_bytes: int) -> dict[str, Any]:
    """Reads a JSON object, and no more bytes than allowed.

    Args:
        request: Its body has not been read.
        limit_bytes: Largest body; one that says it is larger is refused before it is read.

    Raises:
        BridgeError: BODY_TOO_LARGE, BODY_TOO_SLOW, NOT_JSON.
    """
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated[:20]) > limit_bytes:
        raise BridgeError("BODY_TOO_LARGE")
    try:
        raw = await asyncio.wait_for(_collect(request, limit_bytes), BODY_TIMEOUT_S)
    except (asyncio.TimeoutError, TimeoutError):  # one class only since Python 3.11
        raise BridgeError("BODY_TOO_SLOW") from None
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise BridgeError("NOT_JSON") from None
    if not isinstance(body, dict):
        raise BridgeError("NOT_JSON")
    return body


async def _collect(request: Request, limit_bytes: int) -> bytes:
    collected = bytearray()
    async for chunk in request.stream():
        if len(collected) + len(chunk) > limit_bytes:
            raise BridgeError("BODY_TOO_LARGE")
        collected += chunk
    return bytes(collected)


def read_ask(body: Mapping[str, Any]) -> Ask:
    """The question of `POST /infer_web` and `POST /`.

    Raises:
        BridgeError: A field is missing or is not what it should be.
    """
    return Ask(
        prompt=_prompt(body.get("prompt")),
        screen=decode_image(body.get("image_b64")),
        label=_label(body.get("expert")),
        adapter=_adapter(body.get("adapter")),
    )


def read_inspection(body: Mapping[str, Any]) -> Ask:
    """The question of the inspector page, which may also choose a mode or the bare base.

    Raises:
        BridgeError: A field is missing or is not what it should be, or the choices exclude
            each other.
    """
    ask = read_ask(body)
    mode, base_only = body.get("mode"), body.get("base_only", False)
    if mode is not None and mode not in [known.value for known in RoutingMode]:
        raise BridgeError("BAD_MODE")
    chosen = [mode is not None, ask.label is not None or ask.adapter is not None, bool(base_only)]
    if not isinstance(base_only, bool) or sum(chosen) > 1:
        raise BridgeError("BAD_CHOICE")
    return Ask(
        ask.prompt,
        ask.screen,
        ask.label,
        ask.adapter,
        RoutingMode(mode) if mode else None,
        base_only,
    )


def decode_image(value: object) -> bytes:
    """The bytes of an image in base64, bare or as a data URL.

    Raises:
        BridgeError: IMAGE_MISSING, IMAGE_NOT_BASE64.
    """
    if not isinstance(value, str) or not value:
        raise BridgeError("IMAGE_MISSING")
    if value[:5].lower() == "data:":
        prefix = _DATA_URL.match(value)
        if prefix is None:
            raise BridgeError("IMAGE_MISSING")
        value = value[prefix.end() :]
    try:
        screen = base64.b64decode(value.translate(_WHITE_SPACE), validate=True)
    except (binascii.Error, ValueError):
        raise BridgeError("IMAGE_NOT_BASE64") from None
    if not screen:
        raise BridgeError("IMAGE_MISSING")
    return screen


def _prompt(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BridgeError("PROMPT_MISSING")
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON can write half a surrogate pair, which is no text and fits into no message.
        raise BridgeError("PROMPT_MISSING") from None
    return value


def _label(value: object) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise BridgeError("BAD_LABEL")
    return value


def _adapter(value: object) -> str | None:
    if value is None:
        return None
    # What is no ASCII is no expert's name, and may not fit into a message.
    if not isinstance(value, str) or not value or not value.isascii():
        raise BridgeError("BAD_ADAPTER")
    return value
