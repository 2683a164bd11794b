"""Writes a trained head as a router bundle: `router.onnx`, `router.json`, `shown.safetensors`.

Knows ONNX and the bundle's statement; knows nothing of how the head was trained.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import hashlib
import importlib.metadata
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from router_service.bundle import HEAD_FILE, MANIFEST_FILE
from router_service.manifest import Manifest, Provenance, TemperatureSetting, Threshold, Thresholds
from training.heads import LayeredHead, RouterHead, whole
from training.known_screens import KnownScreens
from training.shown import SHOWN_FILE
from training.stage1 import Stage1Result

OPSET = 20
MAX_DIFFERENCE = 1e-5
_TYPED = "a careful choice, not fitted to data"
TYPED_THRESHOLDS = Thresholds(
    agent_fast_path=Threshold(0.99, "typed", _TYPED),
    agent_accept=Threshold(0.9, "typed", _TYPED),
    agent_veto=Threshold(0.9, "typed", _TYPED),
)


def export_bundle(
    result: Stage1Result, out: Path, config: Mapping[str, float | int | str] | None = None
) -> Path:
    """Write the bundle of a trained head; nothing is written of one that cannot be.

    Args:
        result: What `train_stage1` returned.
        out: Directory of the bundle; made if it is missing.
        config: What the bundle states of how the head was trained; None: stage 1's choices.

    Returns:
        The directory.

    Raises:
        RuntimeError: The ONNX file does not give torch's values to within 1e-5.
    """
    judge = Judge(result.head, result.known)
    model = to_onnx(judge)
    _check_same(judge, model)
    manifest = _manifest(result, model, config or result.config.model_dump())
    out.mkdir(parents=True, exist_ok=True)
    (out / HEAD_FILE).write_bytes(model)
    (out / SHOWN_FILE).write_bytes(result.shown.to_bytes())
    write_manifest(manifest, out)
    return out


def write_manifest(manifest: Manifest, out: Path) -> None:
    """Write `router.json` in one step: a router that starts meanwhile reads the old or the new."""
    stated = dataclasses.asdict(manifest, dict_factory=_plain)
    unfinished = out / f"{MANIFEST_FILE}.new"
    unfinished.write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(out / MANIFEST_FILE)


class Judge(nn.Module):
    """What a bundle's ONNX file computes.

    Args:
        head: In eval mode.
        known: Of the screens that the router is to know.
    """

    def __init__(self, head: RouterHead | LayeredHead, known: KnownScreens) -> None:
        super().__init__()
        self.head = head
        self.known = known

    @property
    def layers(self) -> int:
        """Decoder layers with logits of their own; 0 for none."""
        return self.head.layers if isinstance(self.head, LayeredHead) else 0

    @property
    def outputs(self) -> list[str]:
        """What `forward` gives, by the names that the router knows."""
        return ["logits", "distance", *(["layer_logits"] if self.layers else [])]

    def forward(self, text: torch.Tensor, vision: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Of text [n, text_dim] and vision [n, vision_dim]: logits [n, K] and distances [n].

        Then, of a head with layers, their logits [n, L, K], of which the first are the mean.
        """
        logits, distance = self.head(text, vision), self.known(vision)
        return (whole(logits), distance, *((logits,) if self.layers else ()))


def to_onnx(judge: Judge) -> bytes:
    """One ONNX file: `text` and `vision` in, the judge's outputs out, for any number of rows.

    Args:
        judge: In eval mode.

    Returns:
        The serialised model. Nothing of the exporting machine is in it.
    """
    text, vision = _random_inputs(judge.head, rows=2)
    rows = torch.export.Dim("rows")
    with _without_remarks():
        program = torch.onnx.export(
            judge,
            (text, vision),
            input_names=["text", "vision"],
            output_names=judge.outputs,
            dynamic_shapes=({0: rows}, {0: rows}),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    model = program.model_proto
    _name_as_torch_does(model.graph)
    # The exporter notes stack traces, and with them the paths of this machine.
    del model.metadata_props[:]
    graph = model.graph
    parts: list[Any] = [graph, *graph.node, *graph.value_info, *graph.initializer]
    for part in (*parts, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


@contextlib.contextmanager
def _without_remarks() -> Iterator[None]:
    """Keeps back what the exporter says of itself and of packages that it would look into.

    None of it is about this head, which is checked afterwards.
    """
    told = logging.getLogger("torch.onnx")
    level = told.level
    told.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        told.setLevel(level)


def _name_as_torch_does(graph: onnx.GraphProto) -> None:
    """Call the head's weights as `RouterHead` does, so that they can be read back into one."""
    for tensor in graph.initializer:
        tensor.name = tensor.name.removeprefix("head.")
    for node in graph.node:
        node.input[:] = [name.removeprefix("head.") for name in node.input]


def _check_same(judge: Judge, model: bytes) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for rows in (1, 33):
        text, vision = _random_inputs(judge.head, rows)
        with torch.inference_mode():
            expected = [output.numpy() for output in judge(text, vision)]
        found = session.run(judge.outputs, {"text": text.numpy(), "vision": vision.numpy()})
        for name, ours, theirs in zip(judge.outputs, expected, found, strict=True):
            # Random inputs may be many spreads away, so distances compare relative to their size.
            difference = float((np.abs(ours - theirs) / np.maximum(np.abs(ours), 1)).max())
            if not difference <= MAX_DIFFERENCE:
                raise RuntimeError(f"the ONNX file's {name} differs from torch's: {difference:.2e}")


def _random_inputs(head: RouterHead | LayeredHead, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Text and vision, spread like what the head learnt from."""
    generator = torch.Generator().manual_seed(0)
    reads = head.trunk if isinstance(head, LayeredHead) else head
    text, vision = (
        seen.mean + seen.spread * torch.randn(rows, len(seen.mean), generator=generator)
        for seen in (reads.text_scale, reads.vision_scale)
    )
    return text, vision


def _manifest(
    result: Stage1Result, model: bytes, config: Mapping[str, float | int | str]
) -> Manifest:
    index = result.index
    cases = result.calibration.cases
    head = result.head
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
        layers=head.layers if isinstance(head, LayeredHead) else 0,
        provenance=Provenance(
            seed=result.config.seed,
            dataset_digest=index.dataset_digest,
            known_digest=result.known_digest,
            expert_set=index.expert_set,
            cases=result.cases,
            accuracy=result.accuracy,
            config=dict(config),
            tools={name: importlib.metadata.version(name) for name in ("molora", "torch", "onnx")},
            shown_sha256=hashlib.sha256(result.shown.to_bytes()).hexdigest(),
        ),
    )


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value.value if isinstance(value, enum.Enum) else value for key, value in pairs}
