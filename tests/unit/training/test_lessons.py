"""What stage 1 learns from: rows of which some are mixed, and with what loss."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.distributions import Beta
from torch.nn import functional as F

from router_service.core import ExpertEntry, FeatureSpec
from tests.support.feature_cache import write_shard
from training.features import FeatureTable, load_features
from training.heads import RouterHead
from training.lessons import Lessons

EXPERTS = tuple(ExpertEntry(name, name[0] * 64, label) for label, name in enumerate("abc"))
SPEC = FeatureSpec(2, "mean", "tower", "mean", 8, 6, "b" * 64, "1")
ROWS = 12


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> FeatureTable:
    generator = torch.Generator().manual_seed(4)
    shard = {
        "text": torch.randn(ROWS, 8, generator=generator),
        "vision": torch.randn(ROWS, 6, generator=generator),
        "label": torch.arange(ROWS) % 3,
        "image": torch.arange(ROWS),
        "source": torch.zeros(ROWS, dtype=torch.int64),
    }
    out: Path = tmp_path_factory.mktemp("features")
    return load_features(write_shard(out, shard, SPEC, EXPERTS, "d" * 64))


@pytest.fixture(scope="module")
def head() -> RouterHead:
    torch.manual_seed(5)
    return RouterHead(8, 6, 3, 16, 0.0).eval().requires_grad_(False)


def lessons(table: FeatureTable, mixup: float) -> Lessons:
    none = torch.zeros(0, dtype=torch.int64)
    train = (table.label >= 0).nonzero().flatten()
    return Lessons(table, {"train": train, "validation": none, "held_out": none}, 0.9, mixup)


class TestMixing:
    def test_without_it_the_loss_is_the_cross_entropy(self, table, head) -> None:
        batch = torch.tensor([0, 4, 8, 3])
        logits = head(table.text[batch], table.vision[batch])
        expected = F.cross_entropy(logits, table.label[batch])
        assert float(lessons(table, 0.0).loss(head, batch)) == pytest.approx(float(expected))

    def test_rows_and_losses_are_mixed_in_the_same_shares(self, table, head) -> None:
        batch = torch.arange(ROWS)
        torch.manual_seed(6)
        found = lessons(table, 0.4).loss(head, batch)
        torch.manual_seed(6)
        other, share = torch.randperm(ROWS), float(Beta(0.4, 0.4).sample())
        assert 0.01 < share < 0.99
        logits = head(
            share * table.text + (1 - share) * table.text[other],
            share * table.vision + (1 - share) * table.vision[other],
        )
        losses = [
            -logits.log_softmax(dim=1)[batch, label].mean()
            for label in (table.label, table.label[other])
        ]
        expected = share * losses[0] + (1 - share) * losses[1]
        assert float(found) == pytest.approx(float(expected), rel=1e-5)

    def test_labels_and_hints_are_mixed_too(self, table, head) -> None:
        """A third of the rows is labelled by an agent only; each row keeps its own loss."""
        hinted = torch.where(torch.arange(ROWS) < 4, table.label, -1)
        some = dataclasses.replace(
            table,
            label=torch.where(hinted >= 0, -1, table.label),
            hinted=hinted,
            confidence=torch.full((ROWS,), 0.8),
        )
        batch = torch.arange(ROWS)
        torch.manual_seed(6)
        found = lessons(some, 0.4).loss(head, batch)
        torch.manual_seed(6)
        other, share = torch.randperm(ROWS), float(Beta(0.4, 0.4).sample())
        mixed = dataclasses.replace(
            some,
            text=share * table.text + (1 - share) * table.text[other],
            vision=share * table.vision + (1 - share) * table.vision[other],
        )
        swapped = dataclasses.replace(
            mixed,
            label=some.label[other],
            hinted=some.hinted[other],
            confidence=some.confidence[other],
        )
        own, others = (float(lessons(each, 0.0).loss(head, batch)) for each in (mixed, swapped))
        assert float(found) == pytest.approx(share * own + (1 - share) * others, rel=1e-5)

    def test_a_row_mixed_with_itself_is_itself(self, table, head) -> None:
        batch = torch.tensor([7])
        expected = lessons(table, 0.0).loss(head, batch)
        assert float(lessons(table, 0.4).loss(head, batch)) == pytest.approx(float(expected))


def test_of_a_single_expert_an_agent_has_nothing_to_say(tmp_path: Path) -> None:
    shard = {
        "text": torch.randn(4, 8),
        "vision": torch.randn(4, 6),
        "label": torch.tensor([0, 0, 0, -1]),
        "image": torch.arange(4),
        "source": torch.zeros(4, dtype=torch.int64),
        "hinted": torch.tensor([-1, -1, -1, 0]),
        "confidence": torch.full((4,), 0.5),
    }
    table = load_features(write_shard(tmp_path, shard, SPEC, EXPERTS[:1], "d" * 64))
    learnt = lessons(table, 0.4)
    assert learnt.rows.tolist() == [0, 1, 2]
    assert learnt.loss(RouterHead(8, 6, 1, 16, 0.0), learnt.rows).item() == 0
