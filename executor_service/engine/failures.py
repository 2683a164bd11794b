"""What an exception inside one request means: for that request, and for the device.

Knows torch's errors; does not know requests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from service_chassis.errors import Internal, ResourceExhausted, ServiceError

_OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)


def is_fatal(error: Exception) -> bool:
    """Whether the device is unusable from here on, so that the process must end."""
    return isinstance(error, torch.AcceleratorError)


def as_service_error(error: Exception) -> ServiceError:
    """What the caller of the failed request is told.

    Args:
        error: What was raised; its text never leaves this process.

    Returns:
        The error itself if it was meant for callers, else one with a constant text.
    """
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, _OUT_OF_MEMORY):
        return ResourceExhausted(
            "OUT_OF_MEMORY", "The device has no memory for this request; send a smaller one."
        )
    return Internal("ENGINE_FAULT", "The engine failed on this request. Report it.")


@contextlib.contextmanager
def loading_expert() -> Iterator[None]:
    """Run a part of loading an expert.

    Raises:
        ResourceExhausted: It ran out of memory. Other errors pass as they are.
    """
    try:
        yield
    except _OUT_OF_MEMORY as error:
        raise ResourceExhausted(
            "OUT_OF_MEMORY", "There is no memory for this expert; unload another one first."
        ) from error
