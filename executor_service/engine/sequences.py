"""Requests that hold a slot: a prompt is prefilled in parts, then scored or answered.

Knows the model's calls and their order; does not know queues, threads or the network.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from executor_service.engine.detokenizer import Detokenizer
from executor_service.engine.inputs import Context, ConversationInput, Tools
from executor_service.engine.jobs import RequestJob
from executor_service.engine.metrics import Cache
from executor_service.engine.registry import Held
from executor_service.engine.sampler import Choice, Sampler, choose
from executor_service.engine.scheduler import Lane, Progress
from executor_service.engine.stopwatch import during_all
from executor_service.engine.work import (
    Completed,
    FinishReason,
    GenerateAsk,
    ScoreAsk,
    Scored,
    TextDelta,
    Usage,
)
from executor_service.engine.worker import Outcome, together_or_apart
from executor_service.model.gated import DecodeRow
from executor_service.model.prompt import BuiltPrompt
from executor_service.model.rows import RowBatch

Event = TypeVar("Event")


class SequenceJob(RequestJob[Event]):
    """A prompt on its way into a slot.

    Args:
        tools: Shared by all requests.
        ask: The request.
        held: Its experts and gates.
        context: What its `context_id` names.
    """

    lane = Lane.SEQUENCE

    def __init__(
        self, tools: Tools, ask: GenerateAsk | ScoreAsk, held: Held, context: Context | None
    ) -> None:
        super().__init__(tools, ask.screen.data, context)
        self._input = ConversationInput(tools, ask.instruction, self._screen, held)
        self._held = held
        self._row: RowBatch | None = None
        self._length = 0  # Tokens in the slot.
        self._cached = 0

    @staticmethod
    def part(jobs: Sequence[SequenceJob[Any]]) -> Sequence[Outcome]:
        """The tower, or a chunk of the prompt."""
        [job] = jobs
        job._started()
        try:
            return [job._part()]
        except Exception:
            job._wipe()
            raise

    @abc.abstractmethod
    def _sequence(self) -> BuiltPrompt:
        """The tokens to prefill."""

    @abc.abstractmethod
    def _prefilled(self, start: int, hidden: torch.Tensor) -> Progress:
        """Take hidden states [tokens, hidden] from position `start` on; says what follows."""

    def _part(self) -> Progress:
        if self._row is None:
            with self._watch.during("vision"):
                vision = self._input.look()
            self._row = self._tools.model.row(self._sequence(), vision)
            if not self._input.vision_reused:
                return Progress.MORE
        with self._watch.during("prefill"):
            self._restore_prefix()
            start = self._length
            end = min(start + self._tools.chunk_tokens, self._row.embeds.shape[1])
            hidden = self._tools.model.prefill(
                self._row, (start, end), self._tools.slots, self._place, self._held.routing
            )
            self._length = end
            self._keep_prefix(start)
            return self._prefilled(start, hidden)

    @property
    def _place(self) -> int:
        assert self.slot is not None, "the scheduler gives a sequence its slot"
        return self.slot

    def _restore_prefix(self) -> None:
        """Begin behind the system turn if another prompt had the same under the same gates."""
        if self._length or not self._input.prompt.system_tokens:
            return
        prefix = self._tools.prefixes.get(self._input.prefix_key)
        self._tools.metrics.looked_up(Cache.PREFIX, hit=prefix is not None)
        if prefix is not None:
            self._tools.slots.restore(self._place, prefix)
            self._length = self._cached = prefix.length

    def _keep_prefix(self, start: int) -> None:
        """Keep the system turn once the chunk that began at `start` has completed it."""
        length = self._input.prompt.system_tokens
        if start < length <= self._length:
            saved = self._tools.slots.save(self._place, length)
            self._tools.prefixes.put(self._input.prefix_key, saved)

    def _wipe(self) -> None:
        """Leave nothing behind that is not a number."""
        self._tools.slots.clear(self._place)

    def _usage(self, completion_tokens: int) -> Usage:
        prompt = self._input.prompt
        return Usage(len(prompt.ids), prompt.image_tokens, self._cached, completion_tokens)


class ScoreJob(SequenceJob[Scored]):
    """Log-probabilities of a given answer."""

    def __init__(self, tools: Tools, ask: ScoreAsk, held: Held, context: Context | None) -> None:
        super().__init__(tools, ask, held, context)
        self._completion = ask.completion
        self._scores: list[float] = []

    def prepare(self) -> None:
        """Read the screen, build the prompt and the answer's ids."""
        prompts = self._tools.prompts
        self._answer = (*prompts.encode_answer(self._completion), prompts.end_of_turn)
        self._input.prepare(len(self._answer))

    def _sequence(self) -> BuiltPrompt:
        prompt = self._input.prompt
        ids = (*prompt.ids, *self._answer[:-1])
        return BuiltPrompt(ids, prompt.image_start, prompt.image_tokens, prompt.system_tokens)

    def _prefilled(self, start: int, hidden: torch.Tensor) -> Progress:
        # The state at a position tells of the token behind it.
        first = len(self._input.prompt.ids) - 1
        told = hidden[max(first - start, 0) :]
        if len(told):
            done = len(self._scores)
            answer = self._answer[done : done + len(told)]
            self._scores += self._tools.model.log_probabilities(told, answer)
        if len(self._scores) < len(self._answer):
            return Progress.MORE
        self.outbox.put(
            Scored(
                token_ids=self._answer,
                log_probabilities=tuple(self._scores),
                prompt_token_ids=self._input.prompt.ids,
                usage=self._usage(len(self._answer)),
                applied=self._input.applied(),
                timings=self._timings(first_token_ms=0.0),
            )
        )
        return Progress.OVER


class GenerateJob(SequenceJob["TextDelta | Completed"]):
    """An answer, token by token."""

    def __init__(self, tools: Tools, ask: GenerateAsk, held: Held, context: Context | None) -> None:
        super().__init__(tools, ask, held, context)
        self._sampler = Sampler(ask.sampling)
        self._max_new_tokens = ask.max_new_tokens
        self._text = Detokenizer(tools.vocabulary, ask.sampling.stop)
        self._told: list[float] = []  # Log-probabilities of tokens that are not handed out yet.
        self._token = 0
        self._count = 0
        self._offset = 0  # How far M-RoPE's positions are from the count of tokens.
        self._first_token_ms = 0.0
        self._last_token_ms = 0.0

    def prepare(self) -> None:
        """Read the screen, build the prompt."""
        self._input.prepare(self._max_new_tokens)

    @staticmethod
    def step(jobs: Sequence[GenerateJob]) -> Sequence[Outcome]:
        """One more token for each: one forward for all that hold the same experts."""
        outcomes: dict[GenerateJob, Outcome] = {}
        with during_all([job._watch for job in jobs], "decode"):
            for experts in {job._held.experts for job in jobs}:
                group = [job for job in jobs if job._held.experts is experts]
                outcomes.update(zip(group, together_or_apart(group, _decode), strict=True))
        return [outcomes[job] for job in jobs]

    def _sequence(self) -> BuiltPrompt:
        return self._input.prompt

    def _prefilled(self, start: int, hidden: torch.Tensor) -> Progress:
        assert self._row is not None, "there is a row once something is prefilled"
        if self._length < len(self._input.prompt.ids):
            return Progress.MORE
        self._offset = int(self._row.positions[1:].max()) + 1 - self._length
        self._row = None  # Its tensors are not needed any more.
        [outcome] = _take([self], choose([self._sampler], self._tools.model.logits(hidden[-1:])))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _next_row(self) -> DecodeRow:
        position = self._length + self._offset
        return DecodeRow(self._token, self._place, self._length, position, self._held.gates)

    def _take(self, choice: Choice) -> Progress:
        """Hand out what a token makes certain."""
        self._note_time()
        self._token = choice.token_id
        self._count += 1
        if choice.token_id in self._tools.prompts.ends:
            return self._complete(FinishReason.STOP)
        if choice.log_probability is not None:
            self._told.append(choice.log_probability)
        self._hand_out(self._text.push(choice.token_id))
        if self._text.stopped:
            return self._complete(FinishReason.STOP_STRING)
        if self._count == self._max_new_tokens:
            return self._complete(FinishReason.LENGTH)
        return Progress.STEPS

    def _note_time(self) -> None:
        now_ms = self._watch.total_ms()
        if self._count:
            self._tools.metrics.next_token(now_ms - self._last_token_ms)
        else:
            self._first_token_ms = now_ms
            self._tools.metrics.first_token(now_ms)
        self._last_token_ms = now_ms

    def _complete(self, reason: FinishReason) -> Progress:
        if reason is not FinishReason.STOP_STRING:
            self._hand_out(self._text.finish())
        self.outbox.put(
            Completed(
                finish_reason=reason,
                usage=self._usage(self._count),
                applied=self._input.applied(),
                timings=self._timings(self._first_token_ms),
            )
        )
        return Progress.OVER

    def _hand_out(self, delta: TextDelta) -> None:
        if delta.text or delta.token_ids:
            count = len(delta.token_ids)
            told, self._told = tuple(self._told[:count]), self._told[count:]
            self.outbox.put(TextDelta(delta.text, delta.token_ids, told))


def _decode(jobs: Sequence[GenerateJob]) -> Sequence[Outcome]:
    """One token for each of some jobs that hold the same experts."""
    tools, experts = jobs[0]._tools, jobs[0]._held.experts
    logits = tools.model.decode([job._next_row() for job in jobs], tools.slots, experts)
    choices = choose([job._sampler for job in jobs], logits)
    # What can fail for all of them is behind us.
    for job in jobs:
        job._length += 1
    return _take(jobs, choices)


def _take(jobs: Sequence[GenerateJob], choices: Sequence[Choice | Exception]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for job, choice in zip(jobs, choices, strict=True):
        if isinstance(choice, Exception):
            job._wipe()
            outcomes.append(choice)
        else:
            outcomes.append(job._take(choice))
    return outcomes
