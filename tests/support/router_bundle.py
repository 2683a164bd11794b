"""A router bundle whose head is one matrix per input: its logits can be worked out by hand."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from router_service.core import ExpertEntry, FeatureSpec, Mode
from router_service.manifest import (
    AbstentionRule,
    AgentModel,
    Calibration,
    Fit,
    Manifest,
    ModeSetting,
    Provenance,
    TemperatureSetting,
    Threshold,
    Thresholds,
)

TEXT_DIM = 4
VISION_DIM = 3
SPEC = FeatureSpec(2, "mean", "tower", "mean", TEXT_DIM, VISION_DIM, "b" * 64, "1")
EXPERTS = tuple(
    ExpertEntry(name, hashlib.sha256(name.encode()).hexdigest(), label)
    for label, name in enumerate(("calendar", "chart", "claim-window"))
)


def matrices(experts: int, vision_dim: int = VISION_DIM) -> tuple[np.ndarray, np.ndarray]:
    """Text element k speaks for expert k, vision element k a tenth as loud."""
    text, vision = np.eye(TEXT_DIM, experts), np.eye(vision_dim, experts) / 10
    return text.astype(np.float32), vision.astype(np.float32)


def head_model(
    experts: int = len(EXPERTS),
    *,
    names: tuple[str, str, str] = ("text", "vision", "logits"),
    text_dim: int = TEXT_DIM,
    vision_dim: int = VISION_DIM,
    distance: str | None = None,
) -> onnx.ModelProto:
    """logits = text @ A + vision @ B; the distance, if it gets a name, is the largest |vision|."""
    text, vision, logits = names
    a, b = matrices(experts, vision_dim)
    a = np.resize(a, (text_dim, experts))
    nodes = [
        helper.make_node("MatMul", [text, "A"], ["t"]),
        helper.make_node("MatMul", [vision, "B"], ["v"]),
        helper.make_node("Add", ["t", "v"], [logits]),
    ]
    outputs = [helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["n", experts])]
    values = [numpy_helper.from_array(a, "A"), numpy_helper.from_array(b, "B")]
    if distance:
        nodes += [
            helper.make_node("Abs", [vision], ["size"]),
            helper.make_node("ReduceMax", ["size", "last"], [distance], keepdims=0),
        ]
        outputs.append(helper.make_tensor_value_info(distance, TensorProto.FLOAT, ["n"]))
        values.append(numpy_helper.from_array(np.array([1], np.int64), "last"))
    graph = helper.make_graph(
        nodes,
        "head",
        [
            helper.make_tensor_value_info(text, TensorProto.FLOAT, ["n", text_dim]),
            helper.make_tensor_value_info(vision, TensorProto.FLOAT, ["n", vision_dim]),
        ],
        outputs,
        values,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def manifest(head: bytes, experts: tuple[ExpertEntry, ...] = EXPERTS) -> Manifest:
    """A manifest that fits the head."""
    typed = [Threshold(value, "typed", "for tests") for value in (0.95, 0.8, 0.9)]
    return Manifest(
        format=1,
        head_sha256=hashlib.sha256(head).hexdigest(),
        opset=20,
        experts=experts,
        feature_spec=SPEC,
        feature_spec_digest=SPEC.digest,
        temperature=TemperatureSetting(1.0, "for tests"),
        mode=ModeSetting(Mode.TOP1, "for tests"),
        thresholds=Thresholds(*typed),
        calibration=Calibration("none", 0, 0.0, 0.0, 0.0, 0.0),
        provenance=Provenance(0, "d" * 64, "e" * 64, {}, {}, {}, {}),
    )


def write_fitted_bundle(directory: Path) -> Path:
    """A bundle that knows its agent, and abstains beyond distance 5; returns the directory."""
    model = head_model(distance="distance").SerializeToString()
    stated = dataclasses.replace(
        manifest(model),
        agent=AgentModel(1.0, 0.75, 0.99, "measured", "for tests"),
        abstention=AbstentionRule(5.0, "fitted", "for tests"),
        fit=Fit("f" * 64, 100, 0.01, 0.005, 0.95, 0),
    )
    return write_bundle(directory, model, as_json(stated))


def write_bundle(
    directory: Path, head: bytes | None = None, stated: dict[str, Any] | None = None
) -> Path:
    """Write `router.onnx` and `router.json`; returns the directory."""
    model = head_model().SerializeToString() if head is None else head
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "router.onnx").write_bytes(model)
    (directory / "router.json").write_text(json.dumps(stated or as_json(manifest(model))))
    return directory


def as_json(stated: Manifest) -> dict[str, Any]:
    """The manifest as `router.json` holds it."""

    def plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value.value if isinstance(value, enum.Enum) else value for key, value in pairs}

    return dataclasses.asdict(stated, dict_factory=plain)
