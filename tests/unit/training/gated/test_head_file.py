"""Heads from a bundle and from a run, and heads with gates per layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from router_service.core import FeatureSpec
from training.head_file import HeadShape, SavedHead, load_head, new_head, save_head
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


def test_no_head_is_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a router bundle, or the folder of a finished run"):
        load_head(tmp_path)
