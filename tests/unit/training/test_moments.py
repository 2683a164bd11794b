"""Moments of a part of the rows, against those of a copy."""

import torch

from training import moments as module
from training.moments import moments


def test_they_are_those_of_the_rows_whatever_the_parts(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    features = 1e3 + torch.randn(50, 3, generator=generator)
    rows = torch.randperm(50, generator=generator)[:31]
    expected = features[rows].double()
    for at_once in (256, 7, 1):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", at_once)
        mean, deviation = moments(features, rows)
        torch.testing.assert_close(mean, expected.mean(dim=0), rtol=1e-12, atol=0)
        torch.testing.assert_close(deviation, expected.std(dim=0, correction=0), rtol=1e-9, atol=0)
