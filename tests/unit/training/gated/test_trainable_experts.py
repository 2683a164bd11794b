"""Experts as parameters and back: the same output before, after, and in PEFT."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from executor_service.core import GateVector
from executor_service.model.gated import GatedModel, Routing
from executor_service.model.prompt import BuiltPrompt
from executor_service.model.screen import PixelInput, ScreenReader
from tests.support.experts import plain_base
from tests.support.tiny_run import EXPERTS, TinyRun, load_experts
from training.stage3 import train_stage3
from training.trainable_experts import TrainableExperts, write_adapter


@pytest.fixture(scope="module")
def model(tiny: TinyRun) -> GatedModel:
    return GatedModel.load(tiny.base, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def trained(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What stage 3 wrote back."""
    out = tmp_path_factory.mktemp("stage3")
    rates = {"router": 1e-2, "joint_expert": 2e-2}
    return dict(train_stage3(tiny.config(out, rates=rates)).experts)


def question(model: GatedModel, tiny: TinyRun) -> tuple[BuiltPrompt, PixelInput]:
    screen = ScreenReader(tiny.base).read((tiny.records.parent / "images/0.png").read_bytes())
    config = model.config
    image = [config.image_token_id] * screen.image_tokens
    ids = (5, config.vision_start_token_id, *image, config.vision_end_token_id, 7, 8, 9)
    return BuiltPrompt(ids, 2, screen.image_tokens), screen


@torch.no_grad()
def ours(model: GatedModel, tiny: TinyRun, directories: dict[str, Path], at: int) -> torch.Tensor:
    prompt, screen = question(model, tiny)
    routing = Routing(load_experts(model, directories), (GateVector.one_hot(2, at),))
    return model.forward_rows([prompt], model.encode_vision([screen], routing), routing)[0]


@torch.no_grad()
def pefts(model: GatedModel, tiny: TinyRun, directory: Path) -> torch.Tensor:
    prompt, screen = question(model, tiny)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        adapted = PeftModel.from_pretrained(plain_base(tiny.base), directory / "adapter").eval()
    ids = torch.tensor([prompt.ids])
    return adapted(
        input_ids=ids,
        pixel_values=screen.pixel_values,
        image_grid_thw=torch.tensor([screen.grid_thw]),
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        attention_mask=torch.ones_like(ids),
    ).logits[0]


def error(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize("at", [0, 1])
def test_peft_loads_what_stage_3_wrote_with_the_same_output(
    tiny: TinyRun, model: GatedModel, trained: dict[str, Path], at: int
) -> None:
    name = EXPERTS[at]
    reference = pefts(model, tiny, trained[name])
    assert error(ours(model, tiny, trained, at), reference) <= 1e-5
    before = pefts(model, tiny, tiny.experts / name)
    assert error(before, reference) > 1e-2


def test_only_the_weights_of_an_expert_change(tiny: TinyRun, trained: dict[str, Path]) -> None:
    for name, directory in trained.items():
        source = tiny.experts / name
        for file in ("expert.json", "adapter/adapter_config.json"):
            assert (directory / file).read_bytes() == (source / file).read_bytes()
        before, after = (
            load_file(folder / "adapter" / "adapter_model.safetensors")
            for folder in (source, directory)
        )
        shapes = {key: part.shape for key, part in before.items()}
        assert {key: part.shape for key, part in after.items()} == shapes
        assert all(not torch.equal(before[key], after[key]) for key in before)
        assert sorted(path.name for path in (directory / "adapter").iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]


def test_what_was_not_trained_is_written_as_it_was(
    tiny: TinyRun, model: GatedModel, tmp_path: Path
) -> None:
    experts = load_experts(model, {name: tiny.experts / name for name in EXPERTS})
    TrainableExperts(experts, model).write(tmp_path)
    again = load_experts(model, {name: tmp_path / name for name in EXPERTS})
    for one, other in zip(experts.experts, again.experts, strict=True):
        assert one.system_prompt == other.system_prompt
        for name, pair in one.weights.items():
            assert torch.equal(pair.down, other.weights[name].down)
            assert torch.equal(pair.up, other.weights[name].up)
            assert pair.scale == other.weights[name].scale


def test_older_module_names_are_kept(tiny: TinyRun, model: GatedModel, tmp_path: Path) -> None:
    """As adapters were saved while the modules were called otherwise."""
    source, old = tiny.experts / EXPERTS[0] / "adapter", tmp_path / "old"
    old.mkdir()

    def renamed(name: str) -> str:
        return name.replace("model.language_model.layers", "model.layers")

    tensors = load_file(source / "adapter_model.safetensors")
    save_file({renamed(k): v for k, v in tensors.items()}, old / "adapter_model.safetensors")
    config = json.loads((source / "adapter_config.json").read_text())
    (old / "adapter_config.json").write_text(json.dumps(config))
    [expert] = load_experts(model, {"old": old}).experts
    write_adapter(old, tmp_path / "new", expert.weights, model.targets)
    written = load_file(tmp_path / "new" / "adapter_model.safetensors")
    assert set(written) == {renamed(name) for name in tensors}
    assert all(torch.equal(written[renamed(name)], part) for name, part in tensors.items())


def test_gradients_reach_every_parameter(tiny: TinyRun, model: GatedModel) -> None:
    experts = TrainableExperts(
        load_experts(model, {name: tiny.experts / name for name in EXPERTS}), model
    )
    prompt, screen = question(model, tiny)
    stacks, gates = experts.stacks, torch.tensor([[0.4, 0.6]])
    updates = {
        **stacks.tower_updates(gates, [screen.pixel_values.shape[0]], 4, range(2)),
        **stacks.text_updates(gates, None, range(2)),
    }
    with model.state.applied(updates):
        [logits] = model.read([prompt], model.look([screen]))
    logits.logsumexp(dim=-1).sum().backward()
    for name, part in experts.named_parameters():
        assert part.grad is not None, name
        assert float(part.grad.abs().max()) > 0, name
