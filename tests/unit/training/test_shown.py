"""Which images a head was shown: joined over stages, kept in bytes, looked up by number."""

from __future__ import annotations

import torch
from safetensors.torch import load

from training.shown import ShownImages


def test_what_was_learnt_from_once_is_learnt_from() -> None:
    first = ShownImages.of({"train": [5, -3], "validation": [7], "held_out": [9, 11]})
    second = ShownImages.of({"held_out": [-3, 13], "train": [9]})
    both = first.joined(second)
    asked = torch.tensor([-3, 5, 7, 9, 11, 13, 6, -(2**63), 2**63 - 1])
    assert both.splits_of(asked).tolist() == [0, 0, 1, 0, 2, 2, -1, -1, -1]
    assert both.taught(asked).tolist() == [True, True, True, True, *[False] * 5]
    assert second.joined(first).to_bytes() == both.to_bytes()


def test_bytes_hold_everything() -> None:
    shown = ShownImages.of({"train": [2**62, -(2**62)], "held_out": [0]})
    again = ShownImages.from_tensors(load(shown.to_bytes()))
    assert torch.equal(again.image, shown.image)
    assert torch.equal(again.split, shown.split)


def test_nothing_was_shown() -> None:
    nothing = ShownImages.of({})
    assert nothing.splits_of(torch.tensor([1, 2])).tolist() == [-1, -1]
    assert not nothing.taught(torch.tensor([1])).any()
    assert not len(nothing.joined(nothing))
