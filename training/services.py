"""The miniature's two services, started for a while and stopped after it.

Knows how servers are started; asks them nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.demo.server import ServerProcess

READY_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Services:
    """Both services.

    Attributes:
        router: Its address, `host:port`.
        executor: Its address.
        processes: What was started for it; none where both ran already.
    """

    router: str
    executor: str
    processes: tuple[ServerProcess, ...] = ()


@contextlib.contextmanager
def started(bundle: Path | None = None) -> Iterator[Services]:
    """Both on free ports of loopback, over the miniature, whatever the user's own are set to.

    Args:
        bundle: The router's; None for the miniature's.

    Yields:
        Both, once they are SERVING.

    Raises:
        ServerFailed: One died or did not get ready.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MOLORA_", "LORA_"))
    }
    free = ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0"]
    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(
            ServerProcess("executor_service", free, environment=environment)
        )
        address = executor.wait_listening(READY_TIMEOUT_S)
        flags = [*free, "--executor", address, *(["--bundle", str(bundle)] if bundle else [])]
        router = stack.enter_context(
            ServerProcess("router_service", flags, environment=environment)
        )
        executor.wait_serving(READY_TIMEOUT_S)
        router.wait_serving(READY_TIMEOUT_S)
        yield Services(router.wait_listening(READY_TIMEOUT_S), address, (router, executor))
