"""What transformers' Trainer says while it runs, to a progress bar and to TensorBoard, and keeps.

Knows the Trainer's callbacks and its states' folders; trains nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from training.events import Events

Progress = Callable[[int, int], None]
_LOGGED = {"loss": "loss/answer", "grad_norm": "loss/gradient_norm", "learning_rate": "rate/expert"}


def newest_state(folder: Path) -> str | None:
    """The Trainer's last whole state; None if there is none.

    Args:
        folder: Of its states. One that it was writing when it was killed is passed over: it lacks
            the file that is written last.
    """
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return max(map(str, whole), key=step_of, default=None)


def step_of(checkpoint: str | None) -> int:
    """Steps that a state of the Trainer has done, which it writes into the folder's name."""
    return int(checkpoint.rpartition("-")[2]) if checkpoint else 0


class Tells(TrainerCallback):
    """Tells TensorBoard what the Trainer logs. Its own callback would also tell paths."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Called by the Trainer."""
        found = {name: logs[key] for key, name in _LOGGED.items() if key in (logs or {})}
        self._events.add(state.global_step, found)


class Reports(TrainerCallback):
    """Tells how far the Trainer is."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer."""
        self._progress(state.global_step, state.max_steps)
