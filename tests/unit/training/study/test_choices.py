"""One factor at a time, and an accuracy for each seed on what a head has not learnt from."""

from __future__ import annotations

import torch

from executor_service.settings import ExecutorSettings
from router_service.core import ExpertEntry, FeatureSpec
from tests.support.feature_cache import write_shard
from training.run_config import Router
from training.setting import NEW_HEAD
from training.stage1_config import Stage1Config
from training.study.choices import Spec, choices, compare, fit
from training.study.kept import Kept

EXPERTS = tuple(ExpertEntry(name, name[0] * 64) for name in "ab")


def write_cache(folder, *, seed, flip=False):
    """Two experts that the text tells apart; flipped, it tells the other one."""
    noise = torch.Generator().manual_seed(seed)
    label = torch.arange(40) % 2
    sign = (2 * label - 1) * (-1 if flip else 1)
    columns = {
        "text": sign[:, None] * torch.tensor([1.0, -1.0, 2.0, -2.0])
        + 0.1 * torch.randn(40, 4, generator=noise),
        "vision": torch.randn(40, 3, generator=noise),
        "label": label,
        "image": torch.arange(40),
        "source": torch.zeros(40, dtype=torch.int64),
    }
    spec = FeatureSpec(2, "mean", "tower", "mean", 4, 3, "b" * 64, "1")
    return write_shard(folder, columns, spec, EXPERTS, "d" * 64)


def test_the_defaults_are_those_that_are_in_force():
    """They stand where each is used; what was measured holds for all of them or for none."""
    served, spec, head = ExecutorSettings.model_fields, Spec(), Stage1Config()
    assert (spec.layer, spec.pooling, spec.source, spec.vision_pooling) == tuple(
        served[name].default
        for name in ("feature_layer", "text_pooling", "vision_source", "vision_pooling")
    )
    assert (
        Router(
            width=head.width,
            dropout=head.dropout,
            text_layer=spec.layer,
            text_pooling=spec.pooling,
            vision_source=spec.source,
            vision_pooling=spec.vision_pooling,
        )
        == NEW_HEAD
    )


def test_every_choice_changes_one_thing():
    compared = choices(5)
    for choice in compared:
        changed = [
            name for name, value in vars(choice.spec).items() if value != getattr(Spec(), name)
        ]
        changed += [
            name
            for name, value in vars(choice.config).items()
            if value != getattr(Stage1Config(), name)
        ]
        assert len(changed) == (not choice.default)
    assert [c.value for c in compared if c.factor == "text layer"] == ["1", "2", "3", "4"]
    assert [c.factor for c in compared if c.default] == [
        "text layer", "text pooling", "vision source", "vision pooling", "width", "mixup",
        "averaging",
    ]  # fmt: skip
    assert Spec(3, "last", "fused", "mean").flags == [
        "--feature-layer", "3", "--text-pooling", "last", "--vision-source", "fused",
        "--vision-pooling", "mean",
    ]  # fmt: skip


def test_unseen_screens_are_measured_on_their_own(tmp_path):
    write_cache(tmp_path / "learnt", seed=0)
    write_cache(tmp_path / "unseen", seed=1, flip=True)
    found = fit(tmp_path, Stage1Config(width=8), (0, 1))
    assert found["held_out"]["mean"] == 1.0
    assert found["unseen"]["mean"] == 0.0
    assert found["unseen"]["cases"] == 40
    assert len(found["held_out"]["values"]) == 2


def test_the_default_is_trained_once_for_all_factors(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(
        "training.study.choices.fit",
        lambda folder, config, seeds: trained.append((folder.name, config)) or {"held_out": 1},
    )
    told = []
    rows = compare(choices(3), (0,), tmp_path / "features", Kept(tmp_path / "k", {}), told.append)
    assert len(rows) == len(choices(3)) == told[-1]
    assert len(trained) == len(set(trained)) == len(rows) - 6
    assert all(row["held_out"] == 1 for row in rows)
