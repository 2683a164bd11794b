"""What every kind of request has in common, and the extraction of features.

Knows the model's calls and their order; does not know queues, threads or the network.

The engine calls `prepare` on the reader thread, then the worker calls `part` and `step`.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch

from executor_service.engine.inputs import Context, ScreenInput, Tools
from executor_service.engine.outbox import Outbox
from executor_service.engine.scheduler import Lane, Progress
from executor_service.engine.stopwatch import Stopwatch, during_all
from executor_service.engine.work import FeaturesAsk, FeatureTimings, Timings
from executor_service.engine.worker import Outcome
from executor_service.errors import too_long
from executor_service.model.features import FeatureRow, FeatureSpec
from service_chassis.errors import Internal, ServiceError

Event = TypeVar("Event")


class RequestJob(abc.ABC, Generic[Event]):
    """A request with its screen, its clock and its way back.

    Args:
        tools: Shared by all requests.
        data: The screen's bytes; unused where there is a context.
        context: What the request's `context_id` names.
    """

    lane: ClassVar[Lane]

    def __init__(self, tools: Tools, data: bytes, context: Context | None) -> None:
        self.outbox: Outbox[Event] = Outbox()
        self.slot: int | None = None
        self._tools = tools
        self._watch = Stopwatch()
        self._screen = ScreenInput(tools, data, context, self._watch)
        self._queue_ms: float | None = None

    @abc.abstractmethod
    def prepare(self) -> None:
        """Make the input ready; on the reader thread.

        Raises:
            InvalidArgument: It cannot be used.
        """

    @staticmethod
    @abc.abstractmethod
    def part(jobs: Sequence[Any]) -> Sequence[Outcome]:
        """Run the next part of each; see `worker.Job`."""

    @staticmethod
    def step(jobs: Sequence[Any]) -> Sequence[Outcome]:
        """Nothing follows the parts."""
        return [Progress.OVER] * len(jobs)

    def fail(self, error: ServiceError) -> None:
        """Tell the reader."""
        self.outbox.fail(error)

    def _started(self) -> None:
        """Count the wait until now; only the first call does."""
        if self._queue_ms is None:
            self._queue_ms = self._watch.total_ms() - self._watch.spent_ms("read")
            self._tools.metrics.queued(self._queue_ms)

    def _vision_ms(self) -> float:
        return self._watch.spent_ms("read") + self._watch.spent_ms("vision")

    def _timings(self, first_token_ms: float) -> Timings:
        return Timings(
            queue_ms=self._queue_ms or 0.0,
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

    lane = Lane.FEATURES

    def __init__(
        self, tools: Tools, ask: FeaturesAsk, context: Context | None, spec: FeatureSpec
    ) -> None:
        super().__init__(tools, ask.screen.data, context)
        self._text = ask.instruction.text
        self._spec = spec

    def hold(self, context: Context) -> None:
        """Use what is held of the same screen."""
        self._screen.hold(context)

    def prepare(self) -> None:
        """Read the screen; refuse an instruction that does not fit."""
        pixels = self._screen.read()
        ids, start, end = self._tools.prompts.feature_ids(self._text)
        self._ids, self._span = ids, (start, end)
        if len(ids) + pixels.image_tokens > self._tools.max_prompt_tokens:
            raise too_long("PROMPT_TOO_LONG", self._tools.max_prompt_tokens)

    @staticmethod
    def part(jobs: Sequence[FeaturesJob]) -> Sequence[Outcome]:
        """Look at all screens, read all texts."""
        for job in jobs:
            job._started()
        watches, first = [job._watch for job in jobs], jobs[0]
        with during_all(watches, "vision"):
            seen = _look([job._screen for job in jobs])
        rows = [
            FeatureRow(job._ids, job._span, context.vision)
            for job, context in zip(jobs, seen, strict=True)
        ]
        with during_all(watches, "text"):
            found = first._tools.model.features(rows, first._spec)
        outcomes: list[Outcome] = []
        for job, context, features in zip(jobs, seen, found, strict=True):
            outcomes.append(job._finish(context, features.text, features.vision))
        return outcomes

    def _finish(self, context: Context, text: torch.Tensor, vision: torch.Tensor) -> Outcome:
        if not (_good(text, self._spec.text_dim) and _good(vision, self._spec.vision_dim)):
            # A router must never be given half a vector or a NaN.
            return Internal("BAD_FEATURES", "The features are not what their spec says. Report it.")
        timings = FeatureTimings(
            queue_ms=self._queue_ms or 0.0,
            vision_ms=self._vision_ms(),
            text_ms=self._watch.spent_ms("text"),
            total_ms=self._watch.total_ms(),
        )
        self.outbox.put(
            FeaturesResult(context, tuple(text.tolist()), tuple(vision.tolist()), timings)
        )
        return Progress.OVER


def _look(screens: Sequence[ScreenInput]) -> list[Context]:
    """What is seen of each screen with all gates zero; one pass of the tower over the new ones."""
    model = screens[0].tools.model
    new = [screen for screen in screens if screen.context is None]
    looks = iter(model.encode_vision([screen.read() for screen in new], None) if new else ())
    return [screen.context or Context(screen.read(), next(looks)) for screen in screens]


def _good(vector: torch.Tensor, dim: int) -> bool:
    return vector.shape == (dim,) and bool(torch.isfinite(vector).all())
