"""The guide measures the attention that the layer really pays."""

import random

import pytest
import torch
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from executor_service.model.prompt import PromptBuilder
from tests.support.checkpoints import untrained_checkpoint
from training.miniature.guide import Guide
from training.miniature.marks import marks
from training.miniature.questions import base_questions
from training.packing import collate, pack_row
from training.screens.calendar import draw_calendar

LAYER = 2


@pytest.fixture
def eager():
    """Computes attention weights, where the default kernel keeps them to itself."""
    return Qwen3VLForConditionalGeneration.from_pretrained(
        untrained_checkpoint(), dtype=torch.float32, attn_implementation="eager"
    ).eval()


@torch.no_grad()
def test_the_loss_is_minus_the_log_of_the_layer_s_own_attention(eager, reader):
    rng = random.Random(7)
    screens = [draw_calendar(rng) for _ in range(2)]
    builder = PromptBuilder(AutoTokenizer.from_pretrained(untrained_checkpoint()))
    rows = [
        pack_row(
            builder,
            reader.preprocess(screen.image.convert("RGB")),
            base_questions(screen, rng, 6),
            system=None,
        )
        for screen in screens
    ]
    batch = collate(rows, pad_id=0)
    additive = torch.zeros(batch.attention_mask.shape).masked_fill(
        ~batch.attention_mask, torch.finfo(torch.float32).min
    )
    guide = Guide(eager.model.language_model, LAYER)
    inputs = {**batch.model_inputs(), "attention_mask": additive}
    weights = eager.model(**inputs, use_cache=False, output_attentions=True).attentions[LAYER]
    row, position, target = batch.looks.T
    expected = -weights[row, :2, position, target].log().mean()
    assert float(guide.looking(batch)) == pytest.approx(float(expected), rel=1e-4)
    assert guide.loss(batch) > guide.looking(batch)
    guide.remove()


def test_looks_point_from_the_answer_s_tokens_to_the_image_token_that_holds_it(reader):
    rng = random.Random(11)
    screen = draw_calendar(rng)
    builder = PromptBuilder(AutoTokenizer.from_pretrained(untrained_checkpoint()))
    pixels = reader.preprocess(screen.image.convert("RGB"))
    pairs = [pair for pair in base_questions(screen, rng, 40) if pair.question.startswith("Read w")]
    row = pack_row(builder, pixels, pairs[:1], system=None)
    image_start = int(row.looks[:, 1].min()) - min(
        pixels.token_at(*place) for place in pairs[0].looks if place
    )
    places = {mark.name: pixels.token_at(mark.x, mark.y) for mark in marks(screen)}
    words = pairs[0].answer.split(" ")
    lengths = [len(builder.encode_answer(w)) for w in [words[0], *(f" {w}" for w in words[1:])]]
    expected = [
        image_start + places[f"day {word}"]
        for word, length in zip(words, lengths, strict=True)
        for _ in range(length)
        if word != "-"
    ]
    assert row.looks[:, 1].tolist() == expected
