"""What the parts of the client share: addresses, the caller, and each call's attempts.

Knows no method.
"""

from __future__ import annotations

import uuid

from molora_client import wire
from molora_client.calls import Caller
from molora_client.channel import Tls
from molora_client.inputs import ContextRef
from molora_client.replicas import Replicas
from molora_client.retry import Attempts, RetryBudget
from molora_client.transport import Transport

DEFAULT_ROUTER = "127.0.0.1:50051"
DEFAULT_EXECUTOR = "127.0.0.1:50052"
DEFAULT_TIMEOUT_S = 30.0


class ClientBase:
    """Holds what every call needs.

    Args:
        transport: Carries the calls.
        router: Address of the router, `host:port`; several, with commas between, take turns.
        executor: Address of the executor, or several.
        token: Bearer token, or None.
        tls: How to trust the servers, or None for plaintext.
        timeout_s: Deadline of a call that gives none.
    """

    def __init__(
        self,
        transport: Transport,
        router: str,
        executor: str,
        token: str | None,
        tls: Tls | None,
        timeout_s: float,
    ) -> None:
        self._router = Replicas(router, wire.ROUTER_SERVICE)
        self._executor = Replicas(executor, wire.EXECUTOR_SERVICE)
        self._timeout_s = timeout_s
        self._budget = RetryBudget()
        self._caller = Caller(transport, token, tls)

    async def close(self) -> None:
        """Closes the connections; calls in flight are cancelled."""
        await self._caller.close()

    def _holder(self, context: ContextRef) -> Replicas:
        """Whom to ask about a screen: the one replica that holds it, if it is known."""
        if context.executor:
            return Replicas(context.executor, wire.EXECUTOR_SERVICE)
        return self._executor

    def _attempts(
        self,
        timeout_s: float | None,
        context: ContextRef | None = None,
        *,
        repeatable: bool = True,
        routes: bool = False,
    ) -> Attempts:
        return Attempts(
            self._budget,
            self._timeout_s if timeout_s is None else timeout_s,
            repeatable=repeatable,
            routes=routes,
            screen_bytes=context.data if context and context.context_id else None,
        )


def new_request_id() -> str:
    """What one call is known by, on both sides and in every attempt."""
    return uuid.uuid4().hex
