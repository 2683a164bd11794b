"""The calls that look at a screen: route, predict, generate, score, features.

Knows no channel option, no retry rule and no error detail; those have modules of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, ParamSpec

from molora.v1 import executor_pb2, router_pb2
from molora_client import results, wire
from molora_client.base import ClientBase, new_request_id
from molora_client.inputs import (
    AgentHint,
    ContextRef,
    Gating,
    Prompt,
    RoutingMode,
    RoutingOptions,
    Sampling,
    Screen,
)
from molora_client.streams import (
    AsyncGenerationStream,
    AsyncPredictionStream,
    AsyncTextStream,
    Result,
)

Params = ParamSpec("Params")


def _whole(
    stream: Callable[Params, AsyncTextStream[Result]], doc: str
) -> Callable[Params, Coroutine[Any, Any, Result]]:
    """The form of a streaming method that reads to the end and returns the result."""

    @functools.wraps(stream)
    async def whole(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        return await stream(*args, **kwargs).read_to_end()

    whole.__name__ = stream.__name__.removesuffix("_stream")
    whole.__qualname__ = stream.__qualname__.removesuffix("_stream")
    whole.__doc__ = doc
    return whole


class InferenceCalls(ClientBase):
    """The part of `AsyncMolora` that looks at screens."""

    async def route(
        self,
        prompt: str | Prompt,
        screen: Screen,
        *,
        hint: AgentHint | None = None,
        options: RoutingOptions | None = None,
        timeout_s: float | None = None,
    ) -> results.Routed:
        """Asks the router which experts should see this screen.

        Args:
            prompt: The instruction.
            screen: PNG or JPEG bytes, the path of such a file, or a held context.
            hint: The caller's own choice of expert.
            options: What to change about this one decision.
            timeout_s: Deadline in seconds; None for the client's.

        Returns:
            The decision; `routed.context` is the screen for `generate`.

        Raises:
            MoloraError: The call failed.
        """
        context = wire.as_context(screen)
        request_id = new_request_id()
        request = router_pb2.RouteRequest(
            prompt=wire.encode_prompt(prompt),
            screen=wire.encode_screen(context),
            agent_hint=wire.encode_hint(hint),
            options=wire.encode_options(options),
            request_id=request_id,
        )
        attempts = self._attempts(timeout_s, context, routes=True)
        reply = await self._caller.unary(self._router, wire.ROUTE, request, attempts, request_id)
        return wire.decode_routed(reply.decision, reply, reply.timings, context.data, request_id)

    def predict_stream(
        self,
        prompt: str | Prompt,
        screen: Screen,
        *,
        hint: AgentHint | None = None,
        options: RoutingOptions | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        timeout_s: float | None = None,
    ) -> AsyncPredictionStream:
        """Routes and generates in one call; see `route` and `generate_stream` for the arguments.

        Returns:
            The answer's pieces; `.routed` from the first piece on, `.result` at the end.
        """
        context = wire.as_context(screen)
        request_id = new_request_id()
        request = router_pb2.PredictRequest(
            prompt=wire.encode_prompt(prompt),
            screen=wire.encode_screen(context),
            agent_hint=wire.encode_hint(hint),
            options=wire.encode_options(options),
            max_new_tokens=max_new_tokens,
            sampling=wire.encode_sampling(sampling),
            request_id=request_id,
        )
        attempts = self._attempts(timeout_s, context, routes=True)
        replies = self._caller.stream(self._router, wire.PREDICT, request, attempts, request_id)
        return AsyncPredictionStream(replies, context.data)

    def generate_stream(
        self,
        prompt: str | Prompt,
        screen: Screen,
        *,
        gates: Mapping[str, float] | None = None,
        layer_gates: Mapping[int, Mapping[str, float]] | None = None,
        expert: str | None = None,
        base_only: bool = False,
        mode: RoutingMode | None = None,
        masked_experts: tuple[str, ...] = (),
        expert_set: str | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerationStream:
        """Generates under exactly one of `gates`, `expert` and `base_only`.

        Args:
            prompt: The instruction.
            screen: `routed.context`, or a screen as for `route`.
            gates: Expert name to weight, e.g. `routed.gates`.
            layer_gates: LLM decoder layer to its own weights, with `gates`.
            expert: This expert alone.
            base_only: No expert at all.
            mode: Reduces the gates after masking; None uses them as given.
            masked_experts: Experts that must contribute nothing.
            expert_set: `routed.expert_set`: AbortedError if other experts are loaded by now.
            max_new_tokens: None for the server's default.
            sampling: None is greedy.
            timeout_s: Deadline in seconds; None for the client's.

        Returns:
            The answer's pieces; `.result` at the end.

        Raises:
            InvalidArgumentError: None or several of `gates`, `expert` and `base_only`.
        """
        gating = Gating(
            gates, layer_gates or {}, expert, base_only, mode, masked_experts, expert_set
        )
        context = wire.as_context(screen)
        request_id = new_request_id()
        request = executor_pb2.GenerateRequest(
            prompt=wire.encode_prompt(prompt),
            screen=wire.encode_screen(context),
            max_new_tokens=max_new_tokens,
            sampling=wire.encode_sampling(sampling),
            request_id=request_id,
        )
        wire.set_gating(request, gating)
        attempts, holder = self._attempts(timeout_s, context), self._holder(context)
        return AsyncGenerationStream(
            self._caller.stream(holder, wire.GENERATE, request, attempts, request_id)
        )

    predict = _whole(
        predict_stream, "Like `predict_stream`, but waits for the end and returns the `Prediction`."
    )
    generate = _whole(
        generate_stream,
        "Like `generate_stream`, but waits for the end and returns the `Generation`.",
    )

    async def score(
        self,
        prompt: str | Prompt,
        screen: Screen,
        completion: str,
        *,
        gates: Mapping[str, float] | None = None,
        layer_gates: Mapping[int, Mapping[str, float]] | None = None,
        expert: str | None = None,
        base_only: bool = False,
        mode: RoutingMode | None = None,
        masked_experts: tuple[str, ...] = (),
        expert_set: str | None = None,
        return_prompt_token_ids: bool = False,
        timeout_s: float | None = None,
    ) -> results.Scored:
        """Log-probabilities of `completion`, teacher-forced; gates as for `generate_stream`.

        Raises:
            MoloraError: The call failed.
        """
        gating = Gating(
            gates, layer_gates or {}, expert, base_only, mode, masked_experts, expert_set
        )
        context = wire.as_context(screen)
        request_id = new_request_id()
        request = executor_pb2.ScoreRequest(
            prompt=wire.encode_prompt(prompt),
            screen=wire.encode_screen(context),
            completion=completion,
            return_prompt_token_ids=return_prompt_token_ids,
            request_id=request_id,
        )
        wire.set_gating(request, gating)
        attempts, holder = self._attempts(timeout_s, context), self._holder(context)
        reply = await self._caller.unary(holder, wire.SCORE, request, attempts, request_id)
        return wire.decode_scored(reply, request_id)

    async def features(
        self, prompt: str | Prompt, screen: Screen, *, timeout_s: float | None = None
    ) -> results.Features:
        """Extracts what the router sees, all gates zero; the executor keeps the screen.

        Raises:
            MoloraError: The call failed.
        """
        context = wire.as_context(screen)
        request_id = new_request_id()
        request = executor_pb2.ExtractFeaturesRequest(
            prompt=wire.encode_prompt(prompt),
            screen=wire.encode_screen(context),
            request_id=request_id,
        )
        attempts, holder = self._attempts(timeout_s, context), self._holder(context)
        reply = await self._caller.unary(
            holder, wire.EXTRACT_FEATURES, request, attempts, request_id
        )
        held = ContextRef(reply.context_id, attempts.address, context.data)
        return wire.decode_features(reply, held, request_id)
