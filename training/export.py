"""Writes a trained head as a router bundle: `router.onnx` and `router.json`.

Knows ONNX and the bundle's statement; knows nothing of how the head was trained.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import importlib.metadata
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from router_service.core import (
    Manifest,
    Provenance,
    TemperatureSetting,
    Threshold,
    Thresholds,
)
from training.stage1 import RouterHead, Stage1Result

OPSET = 20
MAX_DIFFERENCE = 1e-5
_TYPED = "a careful choice, not fitted to data"
TYPED_THRESHOLDS = Thresholds(
    agent_fast_path=Threshold(0.99, "typed", _TYPED),
    agent_accept=Threshold(0.9, "typed", _TYPED),
    agent_veto=Threshold(0.9, "typed", _TYPED),
)


def export_bundle(result: Stage1Result, out: Path) -> Path:
    """Write the bundle of a trained head.

    Args:
        result: What `train_stage1` returned.
        out: Directory of the bundle; made if it is missing.

    Returns:
        The directory.

    Raises:
        RuntimeError: The ONNX head does not give torch's logits to within 1e-5.
    """
    model = to_onnx(result.head)
    _check_same(result.head, model)
    out.mkdir(parents=True, exist_ok=True)
    (out / "router.onnx").write_bytes(model)
    stated = dataclasses.asdict(_manifest(result, model), dict_factory=_plain)
    (out / "router.json").write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")
    return out


def to_onnx(head: RouterHead) -> bytes:
    """The head as one ONNX file: inputs `text` and `vision`, output `logits`, any number of rows.

    Args:
        head: In eval mode.

    Returns:
        The serialised model. Nothing of the exporting machine is in it.
    """
    text, vision = _random_inputs(head, rows=2)
    rows = torch.export.Dim("rows")
    with warnings.catch_warnings():
        # The exporter's remarks on itself: none is about this head, which is checked afterwards.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            head,
            (text, vision),
            input_names=["text", "vision"],
            output_names=["logits"],
            dynamic_shapes=({0: rows}, {0: rows}),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    model = program.model_proto
    # The exporter notes stack traces, and with them the paths of this machine.
    del model.metadata_props[:]
    graph = model.graph
    parts: list[Any] = [graph, *graph.node, *graph.value_info, *graph.initializer]
    for part in (*parts, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _check_same(head: RouterHead, model: bytes) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for rows in (1, 33):
        text, vision = _random_inputs(head, rows)
        with torch.inference_mode():
            expected = head(text, vision).numpy()
        (found,) = session.run(["logits"], {"text": text.numpy(), "vision": vision.numpy()})
        difference = float(np.abs(expected - found).max())
        if not difference <= MAX_DIFFERENCE:
            raise RuntimeError(f"the ONNX head differs from torch's by {difference:.2e}")


def _random_inputs(head: RouterHead, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    dims = (_dim(head.text), _dim(head.vision))
    text, vision = (torch.randn(rows, dim, generator=generator) for dim in dims)
    return text, vision


def _dim(part: torch.nn.Sequential) -> int:
    norm = part[0]
    assert isinstance(norm, torch.nn.LayerNorm)
    return norm.normalized_shape[0]


def _manifest(result: Stage1Result, model: bytes) -> Manifest:
    index = result.index
    cases = result.calibration.cases
    return Manifest(
        format=1,
        head_sha256=hashlib.sha256(model).hexdigest(),
        opset=OPSET,
        experts=index.experts,
        feature_spec=index.feature_spec,
        feature_spec_digest=index.feature_spec.digest,
        temperature=TemperatureSetting(result.temperature, f"fitted on {cases} held-out cases"),
        mode=result.mode,
        thresholds=TYPED_THRESHOLDS,
        calibration=result.calibration,
        provenance=Provenance(
            seed=result.config.seed,
            dataset_digest=index.dataset_digest,
            expert_set=index.expert_set,
            cases=result.cases,
            accuracy=result.accuracy,
            config=dataclasses.asdict(result.config),
            tools={name: importlib.metadata.version(name) for name in ("molora", "torch", "onnx")},
        ),
    )


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value.value if isinstance(value, enum.Enum) else value for key, value in pairs}
