"""The quick patch embedding against the convolution that it stands for."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from training.miniature.speed import mixed_precision, moved, patches_as_products

PATCH = (2, 4, 4)


class _Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, 8, PATCH, stride=PATCH)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.proj(patches)
        return embedded.flatten(1)


@pytest.mark.parametrize("adapted", [False, True], ids=["bare", "lora"])
def test_output_and_gradients_equal_the_convolutions(adapted: bool) -> None:
    torch.manual_seed(0)
    tower: nn.Module = _Tower()
    if adapted:
        config = LoraConfig(r=2, target_modules=["proj"], init_lora_weights=False)
        tower = get_peft_model(tower, config)  # type: ignore[arg-type]
    tower = tower.double()
    patches = torch.randn(5, 3, *PATCH, dtype=torch.float64)
    expected = _forward_and_gradients(tower, patches)
    patches_as_products(tower)
    torch.testing.assert_close(_forward_and_gradients(tower, patches), expected)


def _forward_and_gradients(tower: nn.Module, patches: torch.Tensor) -> list[torch.Tensor]:
    trainable = [p for p in tower.parameters() if p.requires_grad]
    output = tower(patches)
    return [output, *torch.autograd.grad(output.square().sum(), trainable)]


def test_a_batch_is_moved_whole() -> None:
    @dataclasses.dataclass(frozen=True)
    class Batch:
        ids: torch.Tensor
        looks: torch.Tensor

    batch = Batch(torch.arange(3), torch.ones(2))
    there = moved(batch, torch.device("meta"))
    assert type(there) is Batch
    assert [part.shape for part in (there.ids, there.looks)] == [(3,), (2,)]
    assert all(part.device.type == "meta" for part in (there.ids, there.looks))


@pytest.mark.parametrize(("tiles", "vectors"), [(True, True), (True, False), (False, True)])
def test_a_cpu_with_instructions_for_bfloat16_uses_them(
    monkeypatch: pytest.MonkeyPatch, tiles: bool, vectors: bool
) -> None:
    _has(monkeypatch, tiles=tiles, vectors=vectors)
    with mixed_precision():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16


def test_another_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    _has(monkeypatch, tiles=False, vectors=False)
    with mixed_precision():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


def _has(monkeypatch: pytest.MonkeyPatch, *, tiles: bool, vectors: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vectors)
