"""What the bridge asks the services for one request. Knows the SDK; knows no HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

from clients.web import shapes
from clients.web.asks import Ask
from clients.web.errors import BridgeError
from clients.web.journal import Journal
from clients.web.shapes import Answer
from molora_client import (
    AbstentionOutcome,
    AsyncMolora,
    AsyncTextStream,
    Expert,
    Experts,
    FailedPreconditionError,
    Generation,
    Routed,
    RouterInfo,
    RoutingOptions,
    ServerInfo,
)

# Whoever asks for health wants to know soon.
STATE_TIMEOUT_S = 5.0


class Bridge:
    """Asks with one client; holds the journal of its decisions.

    Args:
        client: Shared by all requests.
    """

    def __init__(self, client: AsyncMolora) -> None:
        self._client = client
        self.journal = Journal()

    async def infer(self, ask: Ask) -> Answer:
        """Routes, or forces the expert that was named, and answers.

        Raises:
            BridgeError: The label fits no expert, or several.
            MoloraError: A service did not answer.
        """
        started = time.perf_counter()
        experts, server = await asyncio.gather(self._client.experts(), self._client.server_info())
        options = RoutingOptions(expert_override=forced_expert(ask, experts.experts))
        prediction = await self._client.predict(ask.prompt, ask.screen, options=options)
        self.journal.note(prediction.routed)
        total_s = time.perf_counter() - started
        return Answer(prediction, experts.experts, server.model, total_s)

    async def inspect(self, ask: Ask) -> AsyncGenerator[dict[str, Any], None]:
        """The same in steps, so that the gates are seen before the answer.

        Yields:
            The decision (not for the bare base), pieces of text, and at last what really ran.

        Raises:
            BridgeError: As `infer`.
            MoloraError: A service did not answer, maybe after the first event.
        """
        started = time.perf_counter()
        routed = None if ask.base_only else await self._route(ask)
        if routed is not None:
            yield shapes.decision_event(routed)
        async with self._generate(ask, routed) as stream:
            async for piece in stream:
                yield {"event": "text", "text": piece}
        yield shapes.completed_event(stream.result, (time.perf_counter() - started) * 1000)

    async def health(self) -> dict[str, Any]:
        """What is served.

        Raises:
            MoloraError: A service does not answer, or the router does not serve.
        """
        experts, server, router = await self._state()
        if not router.serving:
            raise FailedPreconditionError("", reason=router.not_serving_reason)
        return shapes.health(experts, server, router)

    async def facts(self) -> dict[str, Any]:
        """What runs, serving or not.

        Raises:
            MoloraError: A service does not answer.
        """
        return shapes.facts(*await self._state())

    async def _route(self, ask: Ask) -> Routed:
        experts = (await self._client.experts()).experts if ask.label is not None else ()
        options = RoutingOptions(mode=ask.mode, expert_override=forced_expert(ask, experts))
        routed = await self._client.route(ask.prompt, ask.screen, options=options)
        self.journal.note(routed)
        return routed

    def _generate(self, ask: Ask, routed: Routed | None) -> AsyncTextStream[Generation]:
        """The answer under the decision, or of the bare base where there is no gate to give."""
        if routed is None:
            return self._client.generate_stream(ask.prompt, ask.screen, base_only=True)
        if routed.abstention is AbstentionOutcome.BASE:
            return self._client.generate_stream(ask.prompt, routed.context, base_only=True)
        return self._client.generate_stream(
            ask.prompt,
            routed.context,
            gates=routed.gates,
            layer_gates=routed.layer_gates,
            expert_set=routed.expert_set,
        )

    async def _state(self) -> tuple[Experts, ServerInfo, RouterInfo]:
        return await asyncio.gather(
            self._client.experts(timeout_s=STATE_TIMEOUT_S),
            self._client.server_info(timeout_s=STATE_TIMEOUT_S),
            self._client.router_info(timeout_s=STATE_TIMEOUT_S),
        )


def forced_expert(ask: Ask, experts: tuple[Expert, ...]) -> str | None:
    """The expert that the caller named by label or by name, or None: the router decides.

    Labels are those that the loaded experts state; sets of other makers number them otherwise.

    Raises:
        BridgeError: UNKNOWN_LABEL, AMBIGUOUS_LABEL, LABEL_AND_ADAPTER.
    """
    if ask.label is None:
        return ask.adapter
    names = [expert.name for expert in experts if expert.label == ask.label]
    if not names:
        raise BridgeError("UNKNOWN_LABEL")
    if ask.adapter is not None:
        if ask.adapter not in names:
            raise BridgeError("LABEL_AND_ADAPTER")
        return ask.adapter
    if len(names) > 1:
        raise BridgeError("AMBIGUOUS_LABEL")
    return names[0]
