"""What a request runs on: its screen, its prompt, and the tools every request shares.

Knows the model's input side; does not know queues, sampling or the network.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from executor_service.engine.detokenizer import TokenBytes
from executor_service.engine.kept import Kept
from executor_service.engine.metrics import Cache, EngineMetrics
from executor_service.engine.registry import Held
from executor_service.engine.stopwatch import Stopwatch
from executor_service.engine.work import Applied, Instruction
from executor_service.errors import too_long
from executor_service.model.gated import GatedModel, VisionOutput
from executor_service.model.prompt import BuiltPrompt, PromptBuilder
from executor_service.model.screen import PixelInput, ScreenReader
from executor_service.model.slots import Prefix, SlotCache


@dataclass(frozen=True)
class PrefixKey:
    """What decides the keys and values of a system turn.

    Attributes:
        experts: Digest and exact float32 gates of every expert that takes part: the global gate,
            then those of the decoder layers if there are any.
        ids: The turn's tokens.
    """

    experts: tuple[tuple[str, tuple[float, ...]], ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Tools:
    """What all requests share.

    Attributes:
        model: For the worker thread alone.
        slots: Likewise.
        prefixes: Likewise; the system turns that were prefilled lately.
        reader: For the reader thread alone.
        system_prompt: The server's own.
        max_prompt_tokens: Longest prompt, image tokens included.
        chunk_tokens: Prompt tokens that run at once, beside one step of all running answers.
        metrics: What is counted while they run.
    """

    model: GatedModel
    slots: SlotCache
    prefixes: Kept[PrefixKey, Prefix]
    reader: ScreenReader
    prompts: PromptBuilder
    vocabulary: TokenBytes
    system_prompt: str
    max_prompt_tokens: int
    chunk_tokens: int
    metrics: EngineMetrics


@dataclass(frozen=True)
class Context:
    """A screen that was looked at with all gates zero."""

    pixels: PixelInput
    vision: VisionOutput

    @property
    def nbytes(self) -> int:
        """Bytes it keeps in memory."""
        return self.pixels.nbytes + self.vision.nbytes


class ScreenInput:
    """A request's screen: a context, or bytes that are read first.

    Args:
        tools: Shared by all requests.
        data: A PNG or JPEG file; unused where there is a context.
        context: What is held of the screen already.
        watch: The request's.
    """

    def __init__(
        self, tools: Tools, data: bytes, context: Context | None, watch: Stopwatch
    ) -> None:
        self.tools = tools
        self._data = data
        self.context = context
        self._watch = watch
        self._pixels = context.pixels if context is not None else None

    def hold(self, context: Context) -> None:
        """Use what is held of the same screen, before anything was read."""
        self.context, self._pixels, self._data = context, context.pixels, b""

    def read(self) -> PixelInput:
        """Decode and preprocess, unless that is done; on the reader thread.

        Raises:
            InvalidArgument: The bytes are not a screen that can be used.
        """
        if self._pixels is None:
            with self._watch.during("read"):
                self._pixels = self.tools.reader.read(self._data)
            self._data = b""
        return self._pixels


class ConversationInput:
    """Screen, prompt and experts of one Generate or Score.

    Args:
        tools: Shared by all requests.
        instruction: What is asked.
        screen: The screen.
        held: Experts and gates.
    """

    def __init__(
        self, tools: Tools, instruction: Instruction, screen: ScreenInput, held: Held
    ) -> None:
        self._tools = tools
        self._instruction = instruction
        self._screen = screen
        self._held = held
        self.prompt = BuiltPrompt((), 0, 0)
        # Empty: no system turn at all.
        own = held.system_prompt or tools.system_prompt
        self._system = own if instruction.system is None else instruction.system
        # A caller may repeat what the operator has set; it is the same text, so the same tokens.
        self._trusted = self._system == own

    def prepare(self, answer_tokens: int) -> None:
        """Read the screen and build the prompt; on the reader thread.

        Args:
            answer_tokens: What the answer may take of the model's context.

        Raises:
            InvalidArgument: The screen cannot be used, or the prompt is too long.
        """
        self.prompt = self._tools.prompts.build(
            system=self._system or None,
            history=self._instruction.history,
            text=self._instruction.text,
            image_tokens=self._screen.read().image_tokens,
            trusted_system=self._trusted,
        )
        tokens = len(self.prompt.ids)
        if tokens > self._tools.max_prompt_tokens:
            raise too_long("PROMPT_TOO_LONG", self._tools.max_prompt_tokens)
        if tokens + answer_tokens > self._tools.slots.length:
            raise too_long("ANSWER_TOO_LONG", self._tools.slots.length)

    @property
    def vision_reused(self) -> bool:
        """Whether what is held of the screen serves this request's gates too."""
        return self._screen.context is not None and not self._held.changes_vision

    @property
    def prefix_key(self) -> PrefixKey:
        """What the keys and values of this prompt's system turn are kept under."""
        gates = self._held.gates
        experts = tuple(
            (expert.identity.digest, tuple(row[at] for row in (gates.weights, *gates.layers)))
            for at, expert in zip(gates.active, self._held.active, strict=True)
        )
        return PrefixKey(experts, self.prompt.ids[: self.prompt.system_tokens])

    def look(self) -> VisionOutput:
        """The vision output under this request's gates; on the worker thread."""
        if self._screen.context is not None:
            self._tools.metrics.looked_up(Cache.VISION, hit=self.vision_reused)
            if self.vision_reused:
                return self._screen.context.vision
        routing = self._held.routing if self._held.changes_vision else None
        [vision] = self._tools.model.encode_vision([self._screen.read()], routing)
        return vision

    def applied(self) -> Applied:
        """What the answer states."""
        digest = hashlib.sha256(self._system.encode()).hexdigest()
        return self._held.applied(system_prompt_digest=digest, vision_reused=self.vision_reused)
