"""The asynchronous client. Its calls live in `inference.py` and `operations.py`."""

from __future__ import annotations

from types import TracebackType

from molora_client.base import DEFAULT_EXECUTOR, DEFAULT_ROUTER, DEFAULT_TIMEOUT_S
from molora_client.channel import Tls
from molora_client.inference import InferenceCalls
from molora_client.operations import OperatorCalls
from molora_client.transport import AioTransport


class AsyncMolora(InferenceCalls, OperatorCalls):
    """A client of routers and executors, on one event loop; share it, it multiplexes.

    Of several addresses those whose health says SERVING take turns. A held screen goes to the
    executor that holds it, and a change of experts needs a client of one executor.

    Args:
        router: Address of the router, `host:port`; several with commas between.
        executor: Address of the executor, or several.
        token: Bearer token; refused over plaintext beyond loopback.
        tls: How to trust the servers; None for plaintext.
        timeout_s: Deadline of a call, its retries included, where the call gives none.
    """

    def __init__(
        self,
        router: str = DEFAULT_ROUTER,
        executor: str = DEFAULT_EXECUTOR,
        token: str | None = None,
        tls: Tls | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        super().__init__(AioTransport(tls), router, executor, token, tls, timeout_s)

    async def __aenter__(self) -> AsyncMolora:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
