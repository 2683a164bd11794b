"""What a bundle abstains from, counted by hand; and what it would, had an expert never been one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import numpy_helper

from router_service.bundle import Bundle, load_bundle
from router_service.core import Features, HeadOutput
from router_service.head import Head
from router_service.manifest import AbstentionRule, Fit
from router_service.settings import EMBEDDED_BUNDLE
from tests.support import router_bundle
from tests.support.feature_cache import write_calibrated
from training.agents import Hints
from training.features import load_features
from training.held_out import Cases, read_unknown
from training.known_screens import KnownScreens, read_known_screens
from training.refusals import refusal_chart, refusals

NAMES = [expert.name for expert in router_bundle.EXPERTS]
PLACES = np.array([0.0, 3.0, 50.0])
"""Where the screens of each expert are; the spread is 1."""


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Abstains beyond distance 5, fitted to refuse a tenth; it remembers `PLACES`."""
    model = router_bundle.head_model(distance="distance")
    mean = np.repeat(PLACES[:, None], 3, axis=1).astype(np.float32)
    for name, values in (("mean", mean), ("spread", np.ones_like(mean))):
        model.graph.initializer.append(numpy_helper.from_array(values, f"known.{name}"))
    head = model.SerializeToString()
    stated = dataclasses.replace(
        router_bundle.manifest(head),
        abstention=AbstentionRule(5.0, "fitted", "for tests"),
        fit=Fit("f" * 64, 100, 0.01, 0.1, 0.95, 0),
    )
    return load_bundle(
        router_bundle.write_bundle(tmp_path / "router", head, router_bundle.as_json(stated))
    )


def cases_at(places: list[float], labels: list[int], distance: list[float]) -> Cases:
    n = len(labels)
    return Cases(
        dataset_digest="",
        source="",
        logits=np.zeros((n, 3), np.float32),
        distance=np.array(distance),
        vision=np.repeat(np.array(places, np.float32)[:, None], 3, axis=1),
        labels=np.array(labels),
        hints=Hints(np.full(n, -1), np.full(n, np.nan)),
    )


def around(bundle: Bundle) -> Cases:
    """Twenty screens of each expert, half a spread beside its place at most."""
    labels = np.repeat(np.arange(3), 20)
    off = np.tile(np.linspace(-0.5, 0.5, 20), 3)
    return cases_at(list(PLACES[labels] + off), labels.tolist(), np.abs(off).tolist())


def test_by_hand(bundle: Bundle) -> None:
    cases = cases_at([0] * 4, [0, 0, 1, 1], [1.0, 5.0, 5.1, 9.0])
    found = refusals(bundle, cases, {"noise": np.array([4.0, 6.0, 7.0]), "form": np.array([2.0])})
    assert found is not None
    assert (found.known.passed, found.known.n) == (2, 4)
    by_expert = {name: (rate.passed, rate.n) for name, rate in found.by_expert.items()}
    assert by_expert == {NAMES[0]: (0, 2), NAMES[1]: (2, 2)}
    unknown = {source: (rate.passed, rate.n) for source, rate in found.unknown.items()}
    assert unknown == {"noise": (2, 3), "form": (0, 1)}
    known, strange = dict(found.known_curve), dict(found.unknown_curve)
    assert (known[0.0], known[5.0], known[20.0]) == (1.0, 0.5, 0.0)
    assert (strange[0.0], strange[5.0], strange[20.0]) == (1.0, 0.5, 0.0)


def test_an_expert_left_out_is_told_by_how_far_the_others_are(bundle: Bundle) -> None:
    found = refusals(bundle, around(bundle), {})
    assert found is not None
    # The first two are 3 apart, and the others' screens are within half of a spread.
    assert {name: rate.value for name, rate in found.left_out.items()} == dict.fromkeys(NAMES, 1.0)
    same = cases_at([0.0] * 40, [0] * 20 + [1] * 20, [0.0] * 40)
    found = refusals(bundle, same, {})
    assert found is not None
    assert found.left_out[NAMES[0]].value == 0, "its screens are those of another"


def test_too_few_screens_to_leave_one_out(bundle: Bundle) -> None:
    few = cases_at([0.0, 3.0], [0, 1], [0.0, 0.0])
    found = refusals(bundle, few, {})
    assert found is not None
    assert found.left_out == {}


@pytest.mark.parametrize("rule", [None, AbstentionRule(None, "fitted", "too few images")])
def test_a_bundle_that_abstains_from_nothing(bundle: Bundle, rule: AbstentionRule | None) -> None:
    silent = dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, abstention=rule)
    )
    assert refusals(silent, around(bundle), {}) is None


def test_the_chart_has_the_line_and_both_curves(bundle: Bundle) -> None:
    found = refusals(bundle, around(bundle), {"noise": np.array([9.0, 30.0])})
    assert found is not None
    svg = refusal_chart(found)
    assert svg.count("<polyline") == 3
    assert "distance from the nearest" in svg


def test_unknown_pictures_by_their_source(bundle: Bundle, tmp_path: Path) -> None:
    cache = load_features(write_calibrated(tmp_path / "cache", images=10))
    found = read_unknown(bundle, cache)
    assert set(found) == {"synthetic"}
    assert sorted(found["synthetic"]) == pytest.approx(sorted(cache.vision[:, 0].tolist()))
    other = load_features(write_calibrated(tmp_path / "other", images=10, text_layer=9))
    with pytest.raises(ValueError, match="not what the bundle's head reads"):
        read_unknown(bundle, other)


class TestRemembered:
    def test_what_the_embedded_head_remembers_is_what_it_measures_with(self) -> None:
        bundle = load_bundle(EMBEDDED_BUNDLE)
        known, spec = read_known_screens(bundle.head), bundle.manifest.feature_spec
        assert known is not None
        noise = np.random.default_rng(0)
        vision = noise.normal(size=(4, spec.vision_dim)).astype(np.float32)
        text = np.zeros(spec.text_dim, np.float32)
        outputs = Head(bundle.head, bundle.manifest).judge(
            [Features(text, row, "", "", "", "") for row in vision]
        )
        measured = [each.distance for each in outputs if isinstance(each, HeadOutput)]
        assert known(torch.from_numpy(vision)).tolist() == pytest.approx(measured, rel=1e-4)
        assert len(known.mean) == len(bundle.manifest.experts)

    def test_without_an_expert(self) -> None:
        known = KnownScreens(torch.tensor([[0.0], [9.0]]), torch.ones(2, 1))
        assert known(torch.tensor([[0.0]])).tolist() == [0.0]
        assert known.without(0)(torch.tensor([[0.0]])).tolist() == [9.0]

    def test_a_head_that_was_not_written_here(self) -> None:
        assert read_known_screens(router_bundle.head_model().SerializeToString()) is None
