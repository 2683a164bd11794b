"""What an exception inside one request means: for that request, and for the device.

Knows torch's errors; does not know requests.
"""

from __future__ import annotations

import torch

from service_chassis.errors import Internal, ResourceExhausted, ServiceError


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
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return ResourceExhausted(
            "OUT_OF_MEMORY", "The device has no memory for this request; send a smaller one."
        )
    return Internal("ENGINE_FAULT", "The engine failed on this request. Report it.")
