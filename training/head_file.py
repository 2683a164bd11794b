"""A router's head on disk, as torch has it: what stages 2 and 3 start from and leave behind.

Knows the head's files and its shape; does not know how it was trained or what serves it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from router_service.bundle import MANIFEST_FILE, load_bundle
from router_service.core import FeatureSpec
from training.heads import LayeredHead, RouterHead
from training.shown import ShownImages, shown_images

HEAD_FILE = "head.safetensors"
# Before the names of what it was shown, which lies beside the weights.
_SHOWN = "shown."
_DAMAGED = (SafetensorError, json.JSONDecodeError, KeyError, TypeError, RuntimeError)


@dataclass(frozen=True)
class HeadShape:
    """All that decides a head's weights' shapes, and what it reads and chooses between.

    Attributes:
        experts: Names, in the order of the logits.
        feature_spec: What it reads.
        width: Of each projection and of the hidden layer.
        dropout: Probability that a hidden unit is dropped while training.
        layers: Decoder layers with gates of their own; 0 for one gate vector.
    """

    experts: tuple[str, ...]
    feature_spec: FeatureSpec
    width: int
    dropout: float
    layers: int = 0


@dataclass(frozen=True)
class SavedHead:
    """A head and its shape.

    Attributes:
        shown: The images that it was shown, here and in earlier stages.
        temperature: Divides its logits where it is an anchor.
    """

    head: RouterHead | LayeredHead
    shape: HeadShape
    shown: ShownImages
    temperature: float = 1.0


def new_head(shape: HeadShape) -> RouterHead | LayeredHead:
    """A head with random weights."""
    spec = shape.feature_spec
    head = RouterHead(
        spec.text_dim, spec.vision_dim, len(shape.experts), shape.width, shape.dropout
    )
    return LayeredHead(head, shape.layers) if shape.layers else head


def load_head(directory: Path) -> SavedHead:
    """The head of a router bundle, or of a run of stage 2 or 3.

    Args:
        directory: Holds `router.json` and `router.onnx`, or `head.safetensors`.

    Raises:
        ValueError: It holds neither, or one that is not what this version writes, or that does not
            say what it was shown.
        BundleError: The bundle's files do not fit together.
    """
    path = head_path(directory)
    if path.name == MANIFEST_FILE:
        return _from_bundle(directory)
    try:
        return _from_file(path)
    except _DAMAGED as error:
        raise ValueError(
            f"{path} is damaged, or no head that this version writes: put it back, or train it "
            "again"
        ) from error


def head_path(directory: Path) -> Path:
    """The file that says which head a directory holds.

    Raises:
        ValueError: It holds neither a bundle nor a head.
    """
    for name in (MANIFEST_FILE, HEAD_FILE):
        if (directory / name).exists():
            return directory / name
    raise ValueError(
        f"{directory} holds no head: give a router bundle, or the folder of a finished run"
    )


def save_head(saved: SavedHead, directory: Path) -> Path:
    """Writes `head.safetensors`, whole or not at all.

    Returns:
        The file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path, partial = directory / HEAD_FILE, directory / f"{HEAD_FILE}.partial"
    partial.write_bytes(_to_bytes(saved))
    os.replace(partial, path)
    return path


def head_digest(saved: SavedHead) -> str:
    """sha256 (hex) of all that `load_head` gives, whichever files it is from.

    A bundle also states what only a router reads, and may be fitted again under the same head.
    """
    return hashlib.sha256(_to_bytes(saved)).hexdigest()


def _to_bytes(saved: SavedHead) -> bytes:
    """The content of `head.safetensors`; the same head gives the same bytes."""
    stated = dataclasses.asdict(saved.shape) | {"temperature": saved.temperature}
    weights = {name: tensor.detach().cpu() for name, tensor in saved.head.state_dict().items()}
    weights |= {f"{_SHOWN}{name}": part for name, part in saved.shown.to_tensors().items()}
    return save(weights, metadata={"head": json.dumps(stated, sort_keys=True)})


def _from_file(path: Path) -> SavedHead:
    """What `save_head` wrote."""
    with safe_open(path, framework="pt") as file:
        stated = json.loads(file.metadata()["head"])
    temperature = stated.pop("temperature")
    spec, names = FeatureSpec(**stated.pop("feature_spec")), tuple(stated.pop("experts"))
    shape = HeadShape(experts=names, feature_spec=spec, **stated)
    head, tensors = new_head(shape), load_file(path)
    shown = {
        name.removeprefix(_SHOWN): tensors.pop(name)
        for name in list(tensors)
        if name.startswith(_SHOWN)
    }
    if not shown:
        raise ValueError(
            f"{path} does not say which images its head has learnt from: train it again with this "
            "version"
        )
    head.load_state_dict(tensors)
    return SavedHead(head, shape, ShownImages.from_tensors(shown), temperature)


def _from_bundle(directory: Path) -> SavedHead:
    """The exporter keeps torch's names and layouts, so the bundle's weights are the head's."""
    bundle = load_bundle(directory)
    manifest = bundle.manifest
    graph = onnx.load_model_from_string(bundle.head).graph
    weights = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in graph.initializer
    }
    try:
        first = f"{'trunk.' if manifest.layers else ''}text.1.weight"
        width = weights[first].shape[0]
        dropout = float(manifest.provenance.config["dropout"])
        names = tuple(expert.name for expert in manifest.experts)
        shape = HeadShape(names, manifest.feature_spec, width, dropout, manifest.layers)
        head = new_head(shape)
        # Scores that leave features as they are do not survive the export.
        kept = {name: value for name, value in head.state_dict().items() if "_scale." in name}
        weights = kept | weights
        head.load_state_dict({name: weights[name] for name in head.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"{directory} holds a head that was not trained here: export one with stage 1"
        ) from error
    return SavedHead(head, shape, shown_images(directory), manifest.temperature.value)
