"""The gates' running marginals, and the guard that stops a run whose gates collapse.

Knows shares of gates and of labels; knows no router and no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from training.losses import least_share
from training.run_config import Guard

# A mean over some 20 steps, or as many as bring an expert 16 records: with fewer, one that merely
# does not occur for a while would look collapsed.
_STEPS, _RECORDS = 20, 16


class GatesCollapsed(RuntimeError):
    """An expert gets next to no gates any more; what the run would learn is not to use it."""


class GateMarginals:
    """Mean gate of every expert over the last steps, the more steps the rarer it is.

    Args:
        labels: The share of the labels that each expert has, float32 [K]; the mean starts there.
        batch_rows: Records of a step.

    Attributes:
        labels: The same.
        running: float32 [K].
    """

    def __init__(self, labels: torch.Tensor, batch_rows: int) -> None:
        self.labels = labels
        self.running = labels.clone()
        # Of an expert without records the gates are told as quickly as of a common one.
        expected = torch.where(labels > 0, labels, 1.0) * batch_rows
        self._rates = (expected / _RECORDS).clamp(max=1 / _STEPS)
        self._steps_below = 0

    def with_batch(self, everywhere: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
        """The running marginals with a batch in them, and the whole gradient of that batch.

        Args:
            everywhere: Mean gates [K] of the batch, over all processes; its gradient is not used.
            here: Mean gates [K] of this process.
        """
        value = self.running.lerp(everywhere.detach(), self._rates)
        return value / value.sum() + (here - here.detach())

    def update(self, step: torch.Tensor) -> None:
        """Takes the mean gates [K] of a step, over all processes, into the running ones."""
        self.running = self.running.lerp(step, self._rates)

    def check(self, guard: Guard, names: Sequence[str], step: int) -> None:
        """Counts the steps for which the marginals are too far from the labels'.

        Raises:
            GatesCollapsed: They have been for as long as the guard waits.
        """
        below = float(least_share(self.running, self.labels)) < guard.collapse_below
        self._steps_below = self._steps_below + 1 if below else 0
        if self._steps_below < guard.patience_steps:
            return
        named = self.labels > 0
        shares = torch.where(named, self.running / self.labels, torch.inf)
        at = int(shares.argmin())
        raise GatesCollapsed(
            f"the gates have collapsed by step {step}: {names[at]} has "
            f"{float(self.labels[at]):.1%} of the records and gets {float(self.running[at]):.1%} "
            f"of the gates; raise weights.balance or weights.kl, or lower rates.router, and start "
            "from the stage before"
        )

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"running": self.running.cpu(), "steps_below": self._steps_below}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state."""
        self.running = state["running"].to(self.labels.device)
        self._steps_below = state["steps_below"]
