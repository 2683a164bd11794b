"""Our two services, started for a while and stopped after it.

Knows how servers are started; asks them nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.server_process import ServerProcess

READY_TIMEOUT_S = 120.0
# Free ports of loopback, whatever the user's own are set to.
_FREE = ("--host", "127.0.0.1", "--port", "0", "--metrics-port", "0")


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
    """Both over the miniature.

    Args:
        bundle: The router's; None for the miniature's.

    Yields:
        Both, once they are SERVING.

    Raises:
        ServerFailed: One died or did not get ready.
    """
    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(_server("executor_service", ()))
        address = executor.wait_listening(READY_TIMEOUT_S)
        router = stack.enter_context(_server("router_service", _router_flags(address, bundle)))
        executor.wait_serving(READY_TIMEOUT_S)
        router.wait_serving(READY_TIMEOUT_S)
        yield Services(router.wait_listening(READY_TIMEOUT_S), address, (router, executor))


def learning_flags(model: Path, experts: Path) -> list[str]:
    """Flags of an executor whose features are learnt from: in float32, whatever it runs on.

    A GPU would take bfloat16, and a spec does not tell what its features were computed in.
    """
    return ["--model", str(model), "--experts-root", str(experts), "--dtype", "float32"]


@contextlib.contextmanager
def executor_started(*flags: str) -> Iterator[str]:
    """An executor.

    Args:
        flags: Of its own, such as the model's.

    Yields:
        Its address, once it is SERVING.

    Raises:
        ServerFailed: It died or did not get ready.
    """
    with _server("executor_service", flags) as executor:
        executor.wait_serving(READY_TIMEOUT_S)
        yield executor.wait_listening(READY_TIMEOUT_S)


@contextlib.contextmanager
def router_started(executor: str, bundle: Path) -> Iterator[str]:
    """A router before an executor that runs.

    Args:
        executor: Its address.
        bundle: The router's.

    Yields:
        The router's address, once it is SERVING.

    Raises:
        ServerFailed: It died or did not get ready.
    """
    with _server("router_service", _router_flags(executor, bundle)) as router:
        router.wait_serving(READY_TIMEOUT_S)
        yield router.wait_listening(READY_TIMEOUT_S)


def _server(module: str, flags: Sequence[str]) -> ServerProcess:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MOLORA_", "LORA_"))
    }
    return ServerProcess(module, [*_FREE, *flags], environment=environment)


def _router_flags(executor: str, bundle: Path | None) -> list[str]:
    return ["--executor", executor, *(["--bundle", str(bundle)] if bundle else [])]
