"""A packed branch is computed as if it stood alone."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from executor_service.model.prompt import PromptBuilder
from executor_service.model.screen import ScreenReader
from tests.support.checkpoints import untrained_checkpoint
from training.miniature.fit import exact_share
from training.miniature.questions import base_questions
from training.packing import IGNORED, QuestionAnswer, collate, pack_row
from training.screens.calendar import draw_calendar


@pytest.fixture(scope="module")
def model():
    return Qwen3VLForConditionalGeneration.from_pretrained(
        untrained_checkpoint(), dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def builder():
    return PromptBuilder(AutoTokenizer.from_pretrained(untrained_checkpoint()))


@pytest.fixture(scope="module")
def reader():
    return ScreenReader(untrained_checkpoint())


def two_rows(builder, reader):
    rng = random.Random(3)
    rows = []
    for questions in (3, 5):
        screen = draw_calendar(rng)
        pixels = reader.preprocess(screen.image.convert("RGB"))
        pairs = base_questions(screen, rng, questions)
        rows.append((pixels, pairs, pack_row(builder, pixels, pairs, system="You are.")))
    return rows


@torch.no_grad()
def test_each_branch_equals_the_question_alone(model, builder, reader):
    rows = two_rows(builder, reader)
    batch = collate([packed for _, _, packed in rows], pad_id=0)
    hidden = model.model(**batch.model_inputs(), use_cache=False).last_hidden_state

    for at, (pixels, pairs, packed) in enumerate(rows):
        for number, pair in enumerate(pairs, start=1):
            branch = torch.nonzero(packed.branch == number).flatten()
            prompt = builder.build(
                system="You are.", history=(), text=pair.question, image_tokens=pixels.image_tokens
            )
            answer = [*builder.encode_answer(pair.answer), builder.end_of_turn]
            ids = torch.tensor([[*prompt.ids, *answer[:-1]]])
            alone = model.model(
                input_ids=ids,
                pixel_values=pixels.pixel_values,
                image_grid_thw=torch.tensor([pixels.grid_thw]),
                mm_token_type_ids=(ids == model.config.image_token_id).int(),
            ).last_hidden_state[0]
            torch.testing.assert_close(
                hidden[at, branch], alone[-len(branch) :], rtol=1e-4, atol=1e-4
            )
            learnt = packed.labels[branch]
            assert learnt[learnt != IGNORED].tolist() == answer


def test_exact_share_counts_whole_answers(model, builder, reader):
    rows = two_rows(builder, reader)
    batch = collate([packed for _, _, packed in rows], pad_id=0)
    vocabulary = model.config.text_config.vocab_size
    perfect = torch.nn.functional.one_hot(batch.labels.clamp(min=0), vocabulary).float()
    identity = torch.nn.Identity()
    assert exact_share(perfect, identity, batch) == 1.0

    first = torch.nonzero(batch.labels[0] != IGNORED)[0, 0]
    perfect[0, first] = torch.roll(perfect[0, first], 1)
    assert exact_share(perfect, identity, batch) == pytest.approx(7 / 8)


def test_positions_equal_the_models_own(model, builder, reader):
    screen = reader.preprocess(draw_calendar(random.Random(1)).image.convert("RGB"))
    packed = pack_row(builder, screen, [QuestionAnswer("Where", "here")], system=None)
    ids = packed.ids[None]
    expected, _ = model.model.get_rope_index(
        ids,
        (ids == model.config.image_token_id).int(),
        image_grid_thw=torch.tensor([screen.grid_thw]),
    )

    assert torch.equal(packed.positions, expected[:, 0])


def test_a_place_is_looked_at_until_the_answer_tells_it(builder, reader):
    screen = reader.preprocess(draw_calendar(random.Random(1)).image.convert("RGB"))
    pair = QuestionAnswer("Where is 3", "[49, 38]", ((0.5, 0.4),))
    packed = pack_row(builder, screen, [pair], system=None)
    told = builder.encode_answer("[4")
    positions = packed.looks[:, 0]
    assert packed.labels[positions].tolist() == told, "what is written next, the first digit last"
    assert (packed.looks[:, 1] == packed.looks[0, 1]).all()
    unread = QuestionAnswer("Read the month", "May", ((0.5, 0.1),))
    assert len(pack_row(builder, screen, [unread], system=None).looks) == len(
        builder.encode_answer("May")
    )
