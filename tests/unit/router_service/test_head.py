"""The head runs only where its model, its manifest and its features fit together."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from router_service.core import ExpertEntry, Features, HeadOutput
from router_service.errors import BundleError, Internal
from router_service.head import Head
from router_service.manifest import AbstentionRule
from router_service.onnx_file import holds_external_data
from tests.support import router_bundle


def open_head(model: onnx.ModelProto) -> Head:
    data = model.SerializeToString()
    return Head(data, router_bundle.manifest(data))


def only(judged: list[HeadOutput | Internal]) -> HeadOutput:
    [output] = judged
    assert isinstance(output, HeadOutput)
    return output


def features(text: list[float], vision: list[float]) -> Features:
    return Features(
        np.array(text, np.float32), np.array(vision, np.float32), "spec", "model", "set", "context"
    )


def test_logits_come_from_both_inputs() -> None:
    head = open_head(router_bundle.head_model())
    output = only(head.judge([features([1, 2, 3, 4], [10, 20, 30])]))
    assert output.logits.dtype == np.float32
    np.testing.assert_allclose(output.logits, [1 + 1, 2 + 2, 3 + 3])
    assert output.distance is None
    assert not head.measures_distance


def test_a_head_may_measure_how_far_a_screen_is() -> None:
    head = open_head(router_bundle.head_model(distance="distance"))
    assert head.measures_distance
    near, far = head.judge([features([0] * 4, [1, 2, 0]), features([0] * 4, [0, -7, 0])])
    assert isinstance(near, HeadOutput)
    assert isinstance(far, HeadOutput)
    assert (near.distance, far.distance) == (2.0, 7.0)


def test_one_bad_request_of_a_batch_fails_alone() -> None:
    head = open_head(router_bundle.head_model())
    good = features([1, 2, 3, 4], [10, 20, 30])
    first, bad, huge, last = head.judge(
        [good, features([1], [1, 1, 1]), features([3.4e38] * 4, [3.4e38] * 3), good]
    )
    assert isinstance(bad, Internal)
    assert bad.reason == "BAD_FEATURES"
    assert isinstance(huge, Internal)
    assert huge.reason == "BAD_LOGITS"
    for output in (first, last):
        np.testing.assert_allclose(only([output]).logits, [2, 4, 6])
    assert head.judge([]) == []


@pytest.mark.parametrize(
    ("text", "vision"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 2, 3, 4, 5], [1, 2, 3]),
        ([1, 2, 3, 4], []),
        ([1, 2, 3, math.nan], [1, 2, 3]),
        ([1, 2, 3, 4], [1, math.inf, 3]),
    ],
)
def test_features_that_do_not_fit_are_our_bug_and_never_filled(
    text: list[float], vision: list[float]
) -> None:
    [judged] = open_head(router_bundle.head_model()).judge([features(text, vision)])
    assert isinstance(judged, Internal)
    assert judged.reason == "BAD_FEATURES"


def test_logits_that_overflow_are_an_error() -> None:
    model = router_bundle.head_model()
    weights = np.full((4, 3), 3e38, np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "A"))
    [judged] = open_head(model).judge([features([10, 10, 10, 10], [0, 0, 0])])
    assert isinstance(judged, Internal)
    assert judged.reason == "BAD_LOGITS"


@pytest.mark.parametrize(
    "model",
    [
        router_bundle.head_model(names=("words", "vision", "logits")),
        router_bundle.head_model(names=("text", "image", "logits")),
        router_bundle.head_model(names=("text", "vision", "gates")),
        router_bundle.head_model(text_dim=5),
        router_bundle.head_model(experts=2),
        router_bundle.head_model(distance="energy"),
    ],
    ids=["text name", "vision name", "output name", "text dim", "K", "second output"],
)
def test_other_inputs_or_outputs_are_refused(model: onnx.ModelProto) -> None:
    with pytest.raises(BundleError, match="export the bundle again"):
        open_head(model)


def test_more_experts_than_logits_are_refused() -> None:
    data = router_bundle.head_model().SerializeToString()
    experts = (*router_bundle.EXPERTS, ExpertEntry("desktop", "f" * 64))
    with pytest.raises(BundleError, match="4 experts"):
        Head(data, router_bundle.manifest(data, experts))


def test_an_abstention_without_a_distance_is_refused() -> None:
    data = router_bundle.head_model().SerializeToString()
    rule = AbstentionRule(1.0, "fitted", "for tests")
    stated = dataclasses.replace(router_bundle.manifest(data), abstention=rule)
    with pytest.raises(BundleError, match="states an abstention"):
        Head(data, stated)


def test_a_fixed_batch_size_is_refused() -> None:
    model = router_bundle.head_model()
    for node in (*model.graph.input, *model.graph.output):
        node.type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(BundleError, match="two rows"):
        open_head(model)


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x0a\xff\xff\xff"])
def test_bytes_that_are_no_model(data: bytes) -> None:
    with pytest.raises(BundleError, match="is not a model"):
        Head(data, router_bundle.manifest(data))


def external(model: onnx.ModelProto, location: str) -> onnx.ModelProto:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return model


@pytest.mark.parametrize("location", ["router.onnx.data", "../../etc/passwd", "/etc/passwd"])
def test_values_in_another_file_are_refused(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights, _ = router_bundle.matrices(3)
    (tmp_path / "router.onnx.data").write_bytes(weights.tobytes())
    with pytest.raises(BundleError, match="another file"):
        open_head(external(router_bundle.head_model(), location))


def test_external_values_are_found_however_deep() -> None:
    inner = external(router_bundle.head_model(), "x").graph
    outer = router_bundle.head_model()
    assert not holds_external_data(outer.SerializeToString())
    branch = onnx.helper.make_attribute("then_branch", inner)
    outer.graph.node[0].attribute.append(branch)
    assert holds_external_data(outer.SerializeToString())
