"""Gates of their own for every decoder layer, from the head's file to the wire."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from router_service.core import Decision, Features, HeadOutput, Hint, Mode, Options, Reason
from router_service.errors import BundleError, Internal
from router_service.head import Head
from router_service.manifest import ModeSetting, TemperatureSetting, Threshold, Thresholds
from router_service.policy import Policy, PolicyConfig
from router_service.wire import write_decision
from tests.support import router_bundle

NAMES = ("a", "b", "c")
SCALES = (0.5, 1.0, 1.5)


def layered_model(scales: tuple[float, ...] = SCALES) -> onnx.ModelProto:
    """Each layer's logits are the whole's, scaled; the scales' mean is 1."""
    model = router_bundle.head_model()
    graph, at = model.graph, np.array(scales, np.float32).reshape(1, -1, 1)
    graph.initializer.extend(
        [numpy_helper.from_array(at, "S"), numpy_helper.from_array(np.array([1], np.int64), "one")]
    )
    graph.node.extend(
        [
            helper.make_node("Unsqueeze", ["logits", "one"], ["wide"]),
            helper.make_node("Mul", ["wide", "S"], ["layer_logits"]),
        ]
    )
    shape = ["n", len(scales), len(router_bundle.EXPERTS)]
    graph.output.append(helper.make_tensor_value_info("layer_logits", TensorProto.FLOAT, shape))
    return model


def open_head(model: onnx.ModelProto, layers: int) -> Head:
    data = model.SerializeToString()
    return Head(data, dataclasses.replace(router_bundle.manifest(data), layers=layers))


def features(text: list[float]) -> Features:
    vision = np.zeros(3, np.float32)
    return Features(np.array(text, np.float32), vision, "spec", "model", "set", "context")


def decide(
    layers: list[list[float]],
    mode: Mode = Mode.SOFT,
    hint: Hint | None = None,
    options: Options | None = None,
    temperature: float = 1.0,
) -> Decision:
    limits = Thresholds(*[Threshold(0.9, "typed", "test")] * 3)
    rules = Policy(
        PolicyConfig(
            NAMES, ModeSetting(mode, "test"), TemperatureSetting(temperature, "test"), limits
        )
    )
    logits = np.array(layers, np.float32)
    return rules.decide(
        rules.check(hint, options or Options()), HeadOutput(logits.mean(axis=0), None, logits)
    )


def logs(*probabilities: float) -> list[float]:
    return [math.log(each) for each in probabilities]


def test_the_head_gives_the_logits_of_every_layer() -> None:
    (output,) = open_head(layered_model(), 3).judge([features([1, 2, 3, 4])])
    assert isinstance(output, HeadOutput)
    assert output.layers is not None
    np.testing.assert_allclose(output.layers, np.outer(SCALES, [1, 2, 3]))
    np.testing.assert_allclose(output.logits, output.layers.mean(axis=0))


def test_a_layer_that_is_not_finite_spoils_its_own_request_alone() -> None:
    head = open_head(layered_model((1e-30, 1e30)), 2)
    good, bad = head.judge([features([1, 0, 0, 0]), features([1e30] * 4)])
    assert isinstance(good, HeadOutput)
    assert isinstance(bad, Internal)


@pytest.mark.parametrize(
    ("model", "layers"),
    [(layered_model(), 0), (layered_model(), 2), (router_bundle.head_model(), 3)],
)
def test_a_file_with_other_layers_than_stated_is_refused(
    model: onnx.ModelProto, layers: int
) -> None:
    with pytest.raises(BundleError, match="layer_logits"):
        open_head(model, layers)


def test_every_layer_has_gates_and_the_whole_has_their_mean() -> None:
    decision = decide([logs(0.8, 0.1, 0.1), logs(0.2, 0.6, 0.2)])
    assert decision.reason is Reason.ROUTER
    assert decision.layers[0] == pytest.approx({"a": 0.8, "b": 0.1, "c": 0.1})
    assert decision.layers[1] == pytest.approx({"a": 0.2, "b": 0.6, "c": 0.2})
    assert decision.gates == pytest.approx({"a": 0.5, "b": 0.35, "c": 0.15})


def test_mode_mask_and_temperature_hold_in_every_layer() -> None:
    layers = [logs(0.8, 0.15, 0.05), logs(0.1, 0.5, 0.4)]
    decision = decide(layers, Mode.TOP1)
    assert decision.layers == ({"a": 1.0}, {"b": 1.0})
    assert decision.gates == {"a": 0.5, "b": 0.5}
    masked = decide(layers, Mode.TOP1, options=Options(masked_experts=("a",)))
    assert masked.layers == ({"b": 1.0}, {"b": 1.0})
    assert masked.gates == {"b": 1.0}
    assert "a" in masked.probabilities
    flat = decide(layers, temperature=1e6)
    assert flat.layers[0] == pytest.approx(dict.fromkeys(NAMES, 1 / 3), abs=1e-5)


def test_where_an_agent_or_an_operator_is_heard_layers_are_alike() -> None:
    layers = [logs(0.8, 0.1, 0.1), logs(0.6, 0.2, 0.2)]
    agreed = decide(layers, Mode.TOP1, Hint("a", 0.9))
    assert agreed.reason is Reason.AGENT_ACCEPTED
    assert agreed.layers == ()
    forced = decide(layers, options=Options(expert_override="c"))
    assert (forced.gates, forced.layers) == ({"c": 1.0}, ())


def test_the_wire_carries_them() -> None:
    sent = write_decision(decide([logs(0.8, 0.1, 0.1), logs(0.2, 0.6, 0.2)]), "set", "version")
    assert [each.layer for each in sent.gates.layers] == [0, 1]
    assert dict(sent.gates.layers[1].weights) == pytest.approx({"a": 0.2, "b": 0.6, "c": 0.2})
    assert sum(sent.gates.weights.values()) == pytest.approx(1)
    plain = decide([logs(0.8, 0.1, 0.1)] * 2, options=Options(expert_override="c"))
    assert not write_decision(plain, "set", "version").gates.layers
