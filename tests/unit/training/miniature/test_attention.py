"""Attention in blocks against the kernel that it stands for."""

import random

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from executor_service.model.prompt import PromptBuilder
from executor_service.model.screen import ScreenReader
from tests.support.checkpoints import untrained_checkpoint
from training.miniature.attention import attend, attend_in_blocks
from training.miniature.questions import base_questions
from training.packing import PackedBatch, collate, pack_row
from training.screens.calendar import draw_calendar

HEADS, KEY_HEADS, WIDTH = 4, 2, 8


@pytest.fixture(scope="module")
def batch() -> PackedBatch:
    """Two rows of different lengths, of several blocks each."""
    rng = random.Random(3)
    builder = PromptBuilder(AutoTokenizer.from_pretrained(untrained_checkpoint()))
    reader = ScreenReader(untrained_checkpoint())
    screens = [draw_calendar(rng) for _ in range(2)]
    rows = [
        pack_row(
            builder,
            reader.preprocess(screen.image.convert("RGB")),
            base_questions(screen, rng, questions),
            system=None,
        )
        for screen, questions in zip(screens, (18, 9), strict=True)
    ]
    return collate(rows, pad_id=0)


@pytest.mark.parametrize("masked", [False, True], ids=["all see all", "packed"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.03)]
)
def test_output_and_gradients_are_those_of_full_attention(batch, masked, dtype, tolerance):
    mask = batch.attention_mask if masked else None
    rows, length = batch.input_ids.shape
    torch.manual_seed(0)
    exact = [
        torch.randn(rows, heads, length, WIDTH, dtype=torch.float64, requires_grad=True)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]
    wanted = F.scaled_dot_product_attention(*exact, attn_mask=mask, enable_gqa=True, scale=0.5)
    towards = torch.randn_like(wanted)
    gradients = torch.autograd.grad(wanted, exact, towards)

    tensors = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
    found, weights = attend(torch.nn.Module(), *tensors, mask, scaling=0.5)
    found = found.transpose(1, 2)
    assert weights is None
    assert _off(found, wanted) < tolerance
    for mine, theirs in zip(
        torch.autograd.grad(found, tensors, towards.to(dtype)), gradients, strict=True
    ):
        assert _off(mine, theirs) < tolerance


def _off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The error as a share of what is wanted."""
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@torch.no_grad()
def test_a_model_computes_the_same(batch):
    model = Qwen3VLForConditionalGeneration.from_pretrained(
        untrained_checkpoint(), dtype=torch.float32
    ).eval()

    def hidden() -> torch.Tensor:
        return model.model(**batch.model_inputs(), use_cache=False).last_hidden_state

    before = hidden()
    attend_in_blocks(model)
    layers = (model.model.language_model, model.model.visual)
    assert {layer.config._attn_implementation for layer in layers} != {"sdpa"}
    assert _off(hidden(), before.double()) < 1e-5
