"""What the worker runs for each kind of request.

Knows the model's calls and their order; does not know queues, threads or the network.

The engine calls `prepare` on the reader thread, then the worker calls `start` and `step`.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from executor_service.engine.detokenizer import Detokenizer
from executor_service.engine.inputs import Context, ConversationInput, ScreenInput, Tools
from executor_service.engine.outbox import Outbox
from executor_service.engine.registry import Held
from executor_service.engine.stopwatch import Stopwatch
from executor_service.engine.work import (
    Completed,
    FeaturesAsk,
    FeatureTimings,
    FinishReason,
    GenerateAsk,
    ScoreAsk,
    Scored,
    TextDelta,
    Timings,
    Usage,
)
from executor_service.errors import too_long
from executor_service.model.features import FeatureSpec
from executor_service.model.gated import DecodeState
from service_chassis.errors import Internal, ServiceError

Event = TypeVar("Event")


class TokenChooser(Protocol):
    """Turns logits into a token."""

    def sample(self, logits: torch.Tensor) -> int:
        """The next token's id, from float32 [vocab]."""


class RequestJob(abc.ABC, Generic[Event]):
    """A request with its screen, its clock and its way back.

    Args:
        tools: Shared by all requests.
        data: The screen's bytes; unused where there is a context.
        context: What the request's `context_id` names.
    """

    needs_slot = False

    def __init__(self, tools: Tools, data: bytes, context: Context | None) -> None:
        self.outbox: Outbox[Event] = Outbox()
        self._tools = tools
        self._watch = Stopwatch()
        self._screen = ScreenInput(tools, data, context, self._watch)
        self._queue_ms = 0.0

    @abc.abstractmethod
    def prepare(self) -> None:
        """Make the input ready; on the reader thread.

        Raises:
            InvalidArgument: It cannot be used.
        """

    @abc.abstractmethod
    def run(self) -> bool:
        """Run the first part; True when that was all."""

    def start(self) -> bool:
        """Run the first part, counting the wait until now."""
        self._queue_ms = self._watch.total_ms() - self._watch.spent_ms("read")
        return self.run()

    def step(self) -> bool:
        """Nothing follows the first part."""
        return True

    def fail(self, error: ServiceError) -> None:
        """Tell the reader."""
        self.outbox.fail(error)

    def _vision_ms(self) -> float:
        return self._watch.spent_ms("read") + self._watch.spent_ms("vision")

    def _timings(self, first_token_ms: float) -> Timings:
        return Timings(
            queue_ms=self._queue_ms,
            vision_ms=self._vision_ms(),
            prefill_ms=self._watch.spent_ms("prefill"),
            decode_ms=self._watch.spent_ms("decode"),
            time_to_first_token_ms=first_token_ms,
            total_ms=self._watch.total_ms(),
        )


@dataclass(frozen=True)
class FeaturesResult:
    """Features of a prompt and screen, and what can be held of the screen."""

    context: Context
    text: tuple[float, ...]
    vision: tuple[float, ...]
    timings: FeatureTimings


class FeaturesJob(RequestJob[FeaturesResult]):
    """Features with all gates zero, whatever is loaded.

    Args:
        tools: Shared by all requests.
        ask: The request.
        context: What its `context_id` names.
        spec: What the features are.
    """

    def __init__(
        self, tools: Tools, ask: FeaturesAsk, context: Context | None, spec: FeatureSpec
    ) -> None:
        super().__init__(tools, ask.screen.data, context)
        self._text = ask.instruction.text
        self._spec = spec

    def prepare(self) -> None:
        """Read the screen; refuse an instruction that does not fit."""
        pixels = self._screen.read()
        ids, start, end = self._tools.prompts.feature_ids(self._text)
        self._ids, self._span = ids, (start, end)
        if len(ids) + pixels.image_tokens > self._tools.max_prompt_tokens:
            raise too_long("PROMPT_TOO_LONG", self._tools.max_prompt_tokens)

    def run(self) -> bool:
        """Look at the screen, read the text."""
        vision = self._screen.look(None)
        with self._watch.during("text"):
            features = self._tools.model.features(self._ids, self._span, vision, self._spec)
            _check_features(features.text, self._spec.text_dim)
            _check_features(features.vision, self._spec.vision_dim)
            text, seen = tuple(features.text.tolist()), tuple(features.vision.tolist())
        timings = FeatureTimings(
            queue_ms=self._queue_ms,
            vision_ms=self._vision_ms(),
            text_ms=self._watch.spent_ms("text"),
            total_ms=self._watch.total_ms(),
        )
        self.outbox.put(FeaturesResult(Context(self._screen.read(), vision), text, seen, timings))
        return True


class ScoreJob(RequestJob[Scored]):
    """Log-probabilities of a given answer.

    Args:
        tools: Shared by all requests.
        ask: The request.
        held: Its experts and gates.
        context: What its `context_id` names.
    """

    def __init__(self, tools: Tools, ask: ScoreAsk, held: Held, context: Context | None) -> None:
        super().__init__(tools, ask.screen.data, context)
        self._input = ConversationInput(tools, ask.instruction, self._screen, held)
        self._held = held
        self._completion = ask.completion

    def prepare(self) -> None:
        """Read the screen, build the prompt and the answer's ids."""
        prompts = self._tools.prompts
        self._answer = (*prompts.encode_answer(self._completion), prompts.end_of_turn)
        self._input.prepare(len(self._answer))

    def run(self) -> bool:
        """One forward over prompt and answer."""
        prompt, vision = self._input.prompt, self._input.look()
        with self._watch.during("prefill"):
            scores = self._tools.model.score(prompt, self._answer, vision, self._held.routing)
            log_probabilities = tuple(scores.tolist())
        self.outbox.put(
            Scored(
                token_ids=self._answer,
                log_probabilities=log_probabilities,
                prompt_token_ids=prompt.ids,
                usage=Usage(len(prompt.ids), prompt.image_tokens, len(self._answer)),
                applied=self._input.applied(),
                timings=self._timings(first_token_ms=0.0),
            )
        )
        return True


class GenerateJob(RequestJob["TextDelta | Completed"]):
    """An answer, token by token.

    Args:
        tools: Shared by all requests.
        ask: The request.
        held: Its experts and gates.
        context: What its `context_id` names.
        chooser: Chooses its tokens.
    """

    needs_slot = True

    def __init__(
        self,
        tools: Tools,
        ask: GenerateAsk,
        held: Held,
        context: Context | None,
        chooser: TokenChooser,
    ) -> None:
        super().__init__(tools, ask.screen.data, context)
        self._input = ConversationInput(tools, ask.instruction, self._screen, held)
        self._held = held
        self._chooser = chooser
        self._max_new_tokens = ask.max_new_tokens
        self._text = Detokenizer(tools.vocabulary, ask.sampling.stop)
        self._state: DecodeState | None = None
        self._token = 0
        self._count = 0
        self._first_token_ms = 0.0

    def prepare(self) -> None:
        """Read the screen, build the prompt."""
        self._input.prepare(self._max_new_tokens)

    def run(self) -> bool:
        """Prefill and the first token."""
        vision = self._input.look()
        with self._watch.during("prefill"):
            logits, self._state = self._tools.model.prefill(
                self._input.prompt, vision, self._held.routing
            )
            token = self._chooser.sample(logits)
        self._first_token_ms = self._watch.total_ms()
        return self._accept(token)

    def step(self) -> bool:
        """One more token."""
        if self._state is None:
            raise Internal("NOT_PREFILLED", "The engine stepped before the prefill. Report it.")
        with self._watch.during("decode"):
            logits = self._tools.model.step(self._token, self._state, self._held.routing)
            token = self._chooser.sample(logits)
        return self._accept(token)

    def _accept(self, token: int) -> bool:
        """Hand out what a token makes certain; True when it was the last one."""
        self._token = token
        self._count += 1
        if token == self._tools.prompts.end_of_turn:
            return self._complete(FinishReason.STOP)
        self._hand_out(self._text.push(token))
        if self._text.stopped:
            return self._complete(FinishReason.STOP_STRING)
        if self._count == self._max_new_tokens:
            return self._complete(FinishReason.LENGTH)
        return False

    def _complete(self, reason: FinishReason) -> bool:
        if reason is not FinishReason.STOP_STRING:
            self._hand_out(self._text.finish())
        self._state = None
        prompt = self._input.prompt
        self.outbox.put(
            Completed(
                finish_reason=reason,
                usage=Usage(len(prompt.ids), prompt.image_tokens, self._count),
                applied=self._input.applied(),
                timings=self._timings(self._first_token_ms),
            )
        )
        return True

    def _hand_out(self, delta: TextDelta) -> None:
        if delta.text or delta.token_ids:
            self.outbox.put(delta)


def _check_features(vector: torch.Tensor, dim: int) -> None:
    """A router must never be given half a vector or a NaN."""
    if vector.shape != (dim,) or not bool(torch.isfinite(vector).all()):
        raise Internal("BAD_FEATURES", "The features are not what their spec says. Report it.")
