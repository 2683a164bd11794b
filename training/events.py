"""What a training run tells TensorBoard: numbers by step, in the run's folder.

Knows event files; does not know what the numbers mean. No prompt, screen or answer gets here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tensorboardX import SummaryWriter

EVENTS_FOLDER = "events"


class Events:
    """A run's event file; a run that goes on gets one more, and TensorBoard joins them.

    Args:
        out: Folder of the run; None writes nothing, as in all processes but the first.
        step: Steps that are done; what an earlier process told of later ones does not count.
    """

    def __init__(self, out: Path | None, step: int = 0) -> None:
        self._writer: SummaryWriter | None = None
        if out is not None:
            # The file's name has a second and no more: two starts in it would share one file.
            self._writer = SummaryWriter(
                str(out / EVENTS_FOLDER), purge_step=step + 1, filename_suffix=f".{step}"
            )

    def __enter__(self) -> Events:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Tells the numbers of a step.

        Args:
            step: From 1.
            values: By name; a `/` groups them.
        """
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
