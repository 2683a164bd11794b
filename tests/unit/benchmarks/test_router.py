"""The router's benchmark, run for a moment: what it compares, and that the router stays small."""

from __future__ import annotations

import pytest

from benchmarks import router
from router_service.bundle import load_bundle
from router_service.core import HeadOutput
from router_service.handshake import compare
from router_service.head import Head
from router_service.settings import EMBEDDED_BUNDLE
from router_service.wire import read_features, read_info


def test_both_handlers_answer_and_the_router_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "WARM_UP_S", 0.05)
    row = router.measure(EMBEDDED_BUNDLE, rounds=1, seconds=0.3)
    assert row["route_per_s"] > 0
    assert row["empty_per_s"] > 0
    assert row["route_vs_empty_rpc"] == row["route_per_s"] / row["empty_per_s"]
    assert 20 < row["router_rss_mb"] < 200


def test_the_stub_is_the_executor_that_the_bundle_was_made_for() -> None:
    bundle = load_bundle(EMBEDDED_BUNDLE)
    manifest = bundle.manifest
    assert compare(manifest, read_info(router.server_info(manifest))) is None
    features = read_features(router.ready_features(bundle))
    assert features.text.shape == (manifest.feature_spec.text_dim,)
    assert features.vision.shape == (manifest.feature_spec.vision_dim,)
    [output] = Head(bundle.head, manifest).judge([features])
    assert isinstance(output, HeadOutput)
    assert output.distance == pytest.approx(0, abs=1e-4), "no bundle abstains from it"
