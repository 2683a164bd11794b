"""This process among those that train together. Knows accelerate's state; trains nothing."""

from __future__ import annotations

import torch
from accelerate import PartialState


def on_cpu() -> bool:
    """Whether there is nothing but the CPU to train on.

    accelerate has to be told: left alone, it takes the processes of torchrun for so many runs of
    one where it finds no accelerator, each of them the first.
    """
    return not torch.accelerator.is_available()


def this_process() -> PartialState:
    """The process's place; joins the others on the first call."""
    return PartialState(cpu=on_cpu())
