"""A bundle is used as it was exported or not at all."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from router_service.bundle import load_bundle
from router_service.core import Mode
from router_service.errors import BundleError
from router_service.head import Head
from router_service.manifest import AbstentionRule, AgentModel
from router_service.settings import EMBEDDED_BUNDLE
from tests.support import router_bundle


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return router_bundle.write_bundle(tmp_path / "router")


def stated(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "router.json").read_text())


def restate(directory: Path, content: object) -> None:
    (directory / "router.json").write_text(json.dumps(content))


def test_it_is_read_as_written(directory: Path) -> None:
    bundle = load_bundle(directory)
    assert bundle.manifest == router_bundle.manifest(bundle.head)
    assert bundle.manifest.mode.value is Mode.TOP1
    assert [expert.name for expert in bundle.manifest.experts] == [
        "calendar",
        "chart",
        "claim-window",
    ]


def test_what_was_fitted_is_read_too(tmp_path: Path) -> None:
    manifest = load_bundle(router_bundle.write_fitted_bundle(tmp_path)).manifest
    assert manifest.agent == AgentModel(1.0, 0.75, 0.99, "measured", "for tests")
    assert manifest.abstention == AbstentionRule(5.0, "fitted", "for tests")
    assert manifest.fit is not None
    assert manifest.fit.max_risk == 0.01


def test_a_bundle_from_before_thresholds_were_fitted(directory: Path) -> None:
    content = stated(directory)
    for name in ("agent", "abstention", "fit"):
        del content[name]
    restate(directory, content)
    manifest = load_bundle(directory).manifest
    assert (manifest.agent, manifest.abstention, manifest.fit) == (None, None, None)


def test_the_embedded_bundle_loads() -> None:
    bundle = load_bundle(EMBEDDED_BUNDLE)
    Head(bundle.head, bundle.manifest)


def test_the_version_is_what_sha256sum_says(directory: Path) -> None:
    lines = "".join(
        f"{hashlib.sha256((directory / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("router.json", "router.onnx")
    )
    assert load_bundle(directory).version == hashlib.sha256(lines.encode()).hexdigest()


def test_the_version_changes_with_the_content(directory: Path) -> None:
    before = load_bundle(directory).version
    content = stated(directory)
    content["temperature"]["value"] = 2.0
    restate(directory, content)
    assert load_bundle(directory).version != before


@pytest.mark.parametrize("name", ["router.json", "router.onnx"])
def test_a_file_is_missing(directory: Path, name: str) -> None:
    (directory / name).unlink()
    with pytest.raises(BundleError, match=f"{name} cannot be read"):
        load_bundle(directory)


def test_one_flipped_bit_in_the_head(directory: Path) -> None:
    data = bytearray((directory / "router.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (directory / "router.onnx").write_bytes(data)
    with pytest.raises(BundleError, match="sha256"):
        load_bundle(directory)


def test_the_manifest_is_no_json(directory: Path) -> None:
    (directory / "router.json").write_text("{")
    with pytest.raises(BundleError, match="Invalid JSON"):
        load_bundle(directory)


AGENT = {"reliability": 0.8, "ceiling": 0.9, "source": "measured", "why": ""}


def change(path: str, value: object) -> Any:
    def apply(content: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for key in parents:
            content = content[int(key) if key.isdigit() else key]
        content[last] = value

    return pytest.param(apply, id=f"{path}={value}"[:40])


@pytest.mark.parametrize(
    "damage",
    [
        change("format", 2),
        change("experts", []),
        change("experts.1.name", "calendar"),
        change("experts.1.digest", router_bundle.EXPERTS[0].digest),
        change("experts.1.label", "1"),
        change("feature_spec.text_layer", 3),
        change("feature_spec.text_dim", 0),
        change("temperature.value", 0),
        change("temperature.value", "1"),
        change("mode.value", "top3"),
        change("thresholds.agent_veto.value", 1.5),
        change("thresholds.agent_veto.source", "guessed"),
        change("agent", {"weight": -1.0} | AGENT),
        change("agent", {"weight": math.inf} | AGENT),
        change("agent", AGENT | {"weight": 1.0, "reliability": 1.5}),
        change("agent", AGENT | {"weight": 1.0, "ceiling": 1.0}),
        change("agent", AGENT | {"weight": 1.0, "source": "guessed"}),
        change("abstention", {"threshold": -1.0, "source": "fitted", "why": ""}),
        change("abstention", {"threshold": 1.0, "source": "guessed", "why": ""}),
        change("unheard_of", 1),
        change("feature_spec.unheard_of", 1),
        pytest.param(lambda content: content.pop("thresholds"), id="no thresholds"),
    ],
)
def test_a_manifest_that_does_not_hold(directory: Path, damage: Any) -> None:
    content = stated(directory)
    damage(content)
    restate(directory, content)
    with pytest.raises(BundleError, match=r"router\.json: .*export the bundle again"):
        load_bundle(directory)
