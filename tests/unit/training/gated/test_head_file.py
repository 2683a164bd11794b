"""Heads from a bundle and from a run, and heads with gates per layer."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from router_service.core import FeatureSpec
from training.head_file import (
    HeadShape,
    SavedHead,
    head_digest,
    load_head,
    new_head,
    save_head,
)
from training.heads import LayeredHead, RouterHead
from training.shown import ShownImages

SPEC = FeatureSpec(2, "mean", "tower", "mean", 6, 5, "b" * 64, "1")
SHAPE = HeadShape(("a", "b", "c"), SPEC, width=8, dropout=0.25)
MINIATURE = Path(__file__).parents[4] / "miniature"


def features(rows: int, text: int = 6, vision: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.Generator().manual_seed(0)
    return torch.randn(rows, text, generator=noise), torch.randn(rows, vision, generator=noise)


@pytest.mark.parametrize("layers", [0, 4])
def test_a_run_leaves_its_head_whole(tmp_path: Path, layers: int) -> None:
    shape = HeadShape(SHAPE.experts, SPEC, width=8, dropout=0.25, layers=layers)
    head = new_head(shape).eval()
    shown = ShownImages.of({"train": [3], "held_out": [-1]})
    save_head(SavedHead(head, shape, shown, 0.7), tmp_path)
    loaded = load_head(tmp_path)
    assert (loaded.shape, loaded.temperature) == (shape, 0.7)
    assert torch.equal(loaded.head.eval()(*features(3)), head(*features(3)))
    assert loaded.shown.to_bytes() == shown.to_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["head.safetensors"]


def test_a_head_per_layer_starts_as_the_same_head_everywhere() -> None:
    head = new_head(SHAPE).eval()
    assert isinstance(head, RouterHead)
    layered = LayeredHead(head, 4).eval()
    logits = layered(*features(3))
    assert logits.shape == (3, 4, 3)
    assert torch.allclose(logits, head(*features(3))[:, None].expand(-1, 4, -1), atol=1e-6)
    # It is a copy: what it learns is its own.
    assert not {id(part) for part in layered.parameters()} & {id(p) for p in head.parameters()}


def test_the_head_of_the_miniatures_bundle_is_torchs_again() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    loaded = load_head(MINIATURE / "router")
    spec = loaded.shape.feature_spec
    text, vision = features(7, spec.text_dim, spec.vision_dim)
    session = onnxruntime.InferenceSession(
        (MINIATURE / "router" / "router.onnx").read_bytes(), providers=["CPUExecutionProvider"]
    )
    [expected] = session.run(["logits"], {"text": text.numpy(), "vision": vision.numpy()})
    with torch.inference_mode():
        found = loaded.head.eval()(text, vision)
    assert torch.allclose(found, torch.from_numpy(expected), atol=1e-4)
    assert loaded.shape.experts == tuple(sorted(p.name for p in (MINIATURE / "experts").iterdir()))
    assert loaded.temperature > 0


def test_a_head_that_does_not_say_what_it_learnt_from(tmp_path: Path) -> None:
    save_head(SavedHead(new_head(SHAPE), SHAPE, ShownImages.of({})), tmp_path)
    file = tmp_path / "head.safetensors"
    with safe_open(file, framework="pt") as held:
        stated = held.metadata()
    tensors = {name: part for name, part in load_file(file).items() if "shown" not in name}
    save_file(tensors, file, metadata=stated)
    with pytest.raises(ValueError, match="train it again with this version"):
        load_head(tmp_path)


def test_a_damaged_head(tmp_path: Path) -> None:
    file = save_head(SavedHead(new_head(SHAPE), SHAPE, ShownImages.of({"train": [3]})), tmp_path)
    whole = file.read_bytes()
    with safe_open(file, framework="pt") as held:
        stated = held.metadata()
    tensors = load_file(file)
    for content in (b"", whole[:-8], whole[8:]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"head\.safetensors is damaged"):
            load_head(tmp_path)
    bias = {name: part[:1] if name == "mix.5.bias" else part for name, part in tensors.items()}
    for parts, said in (
        (tensors, None),
        (tensors, {"head": "{"}),
        (tensors, {"head": "{}"}),
        (tensors, {"head": stated["head"].replace('"width": 8', '"width": 9')}),
        (tensors, {"head": stated["head"].replace('"width"', '"wide"')}),
        (bias, stated),
    ):
        save_file(parts, file, metadata=said)
        with pytest.raises(ValueError, match="train it again"):
            load_head(tmp_path)


def test_a_head_has_one_digest_in_whichever_files(tmp_path: Path) -> None:
    """It changes with all that is read of a head, and with nothing else."""
    saved = load_head(MINIATURE / "router")
    digest = head_digest(saved)
    file = save_head(saved, tmp_path)
    assert head_digest(load_head(tmp_path)) == digest
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    weights = load_head(tmp_path)
    with torch.no_grad():
        next(weights.head.parameters()).add_(1)
    for other in (
        weights,
        dataclasses.replace(saved, temperature=9.0),
        dataclasses.replace(saved, shown=ShownImages.of({"train": [3]})),
        dataclasses.replace(saved, shape=dataclasses.replace(saved.shape, dropout=0.9)),
    ):
        assert head_digest(other) != digest


def test_no_head_is_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a router bundle, or the folder of a finished run"):
        load_head(tmp_path)
