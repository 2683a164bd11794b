"""A task, and how one is put together; knows no screen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from training.data.calls import ToolCall
from training.screens.geometry import THOUSANDTHS, Box, to_thousandths

PAGE_PIXELS = 300
NO_MATCH = "No match"
"""What is answered to a question about something that the screen does not show."""


@dataclass(frozen=True)
class Task:
    """One instruction and its answer.

    Args:
        adapter: The expert whose task it is.
        task_type: As in the records' metadata.
        prompt: The instruction.
        calls: The answer.
        target: What the answer points at; for an answer that points nowhere, the part of the
            screen that shows why.
        tolerance: (x, y) in thousandths within which an answer still hits its target; None leaves
            it to the scoring's default.
        extras: Further metadata.
        local: Whether the target's own pixels say that it is meant, so that the task is the same
            on a cut-out which shows the target.
    """

    adapter: str
    task_type: str
    prompt: str
    calls: tuple[ToolCall, ...]
    target: Box
    tolerance: tuple[int, int] | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)
    local: bool = False

    @property
    def real_coords(self) -> tuple[int, int]:
        """The middle of the target in pixels."""
        return self.target.centre

    @property
    def points(self) -> bool:
        """Whether the answer has a coordinate."""
        return any("coordinate" in call.arguments for call in self.calls)


@dataclass(frozen=True)
class Asker:
    """Puts tasks of one screen together.

    Args:
        adapter: The screen's expert.
        size: (width, height) of the screen in pixels.
    """

    adapter: str
    size: tuple[int, int]

    def point(
        self, task_type: str, prompt: str, box: Box, action: str = "left_click", *,
        then: Iterable[ToolCall] = (), local: bool = False, **extras: Any,
    ) -> Task:  # fmt: skip
        """A task that is answered at a box, anywhere inside of it, with further calls or none."""
        calls = (ToolCall.computer_use(action, coordinate=self.coordinate(box)), *then)
        tolerance = self.tolerance(box)
        return Task(self.adapter, task_type, prompt, calls, box, tolerance, extras, local)

    def scroll(
        self, task_type: str, prompt: str, box: Box, way: str, *, action: str = "scroll",
        **extras: Any,
    ) -> Task:  # fmt: skip
        """A task that turns the wheel over a box by one page: down, up, right or left."""
        pixels = PAGE_PIXELS if way in ("down", "right") else -PAGE_PIXELS
        call = ToolCall.computer_use(action, coordinate=self.coordinate(box), pixels=pixels)
        extras = {"scroll_direction": way, **extras}
        return Task(self.adapter, task_type, prompt, (call,), box, extras=extras)

    def reply(
        self, task_type: str, prompt: str, call: ToolCall, reason: Box, *, local: bool = False,
        **extras: Any,
    ) -> Task:  # fmt: skip
        """A task that is answered without pointing anywhere."""
        return Task(self.adapter, task_type, prompt, (call,), reason, extras=extras, local=local)

    def coordinate(self, box: Box) -> list[int]:
        """The middle of a box in thousandths."""
        return list(to_thousandths(*box.centre, *self.size))

    def tolerance(self, box: Box) -> tuple[int, int]:
        """Inside the target is right: half of its sides in thousandths, rounded down."""
        width, height = self.size
        return (
            (box.x1 - box.x0) * THOUSANDTHS // (2 * width),
            (box.y1 - box.y0) * THOUSANDTHS // (2 * height),
        )
