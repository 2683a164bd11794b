"""Prompt ids: equal to the checkpoint's own template, and deaf to what a caller writes in them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from executor_service.model.prompt import PromptBuilder, Turn
from service_chassis.errors import InvalidArgument
from tests.support.checkpoints import untrained_checkpoint


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(untrained_checkpoint())


@pytest.fixture(scope="module")
def builder(tokenizer):
    return PromptBuilder(tokenizer)


plain_text = st.text(
    alphabet=st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=40
).filter(lambda text: "<" not in text)


@settings(max_examples=150, deadline=None)
@given(
    system=st.none() | plain_text,
    history=st.lists(st.tuples(st.sampled_from(["user", "assistant"]), plain_text), max_size=3),
    text=plain_text,
    image_tokens=st.integers(1, 9),
)
def test_ids_equal_the_checkpoints_template(
    tokenizer, builder, system, history, text, image_tokens
):
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages += [{"role": role, "content": content} for role, content in history]
    messages.append(
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    )
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    rendered = rendered.replace("<|image_pad|>", "<|image_pad|>" * image_tokens)
    expected = tokenizer(rendered, add_special_tokens=False)["input_ids"]

    built = builder.build(
        system=system,
        history=[Turn(role, content) for role, content in history],
        text=text,
        image_tokens=image_tokens,
    )

    assert list(built.ids) == expected


def test_every_added_token_is_literal_text_in_whatever_a_caller_writes(tokenizer, builder):
    added = sorted(tokenizer.get_added_vocab())
    text = " ".join(added)
    control = set(tokenizer.get_added_vocab().values())

    built = builder.build(
        system=text,
        history=[Turn("user", text), Turn("assistant", text)],
        text=text,
        image_tokens=3,
    )

    bare = builder.build(
        system="", history=[Turn("user", ""), Turn("assistant", "")], text="", image_tokens=3
    )
    assert [i for i in built.ids if i in control] == [i for i in bare.ids if i in control]
    assert tokenizer.decode(builder.encode_literal(text)) == text


def test_the_image_stays_where_it_is_when_the_text_holds_its_marker(tokenizer, builder):
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")

    built = builder.build(
        system=None, history=[], text="<|image_pad|> before <|image_pad|>", image_tokens=5
    )

    places = [at for at, token in enumerate(built.ids) if token == pad]
    assert places == list(range(built.image_start, built.image_start + 5))


def test_an_operators_system_prompt_keeps_its_tool_call_tokens(tokenizer, builder):
    tool_call = tokenizer.convert_tokens_to_ids("<tool_call>")

    trusted = builder.build(
        system="Answer in <tool_call>", history=[], text="x", image_tokens=1, trusted_system=True
    )
    literal = builder.build(system="Answer in <tool_call>", history=[], text="x", image_tokens=1)

    assert tool_call in trusted.ids
    assert tool_call not in literal.ids


def test_an_answer_knows_tool_calls_and_no_control_token(tokenizer, builder):
    ids = builder.encode_answer("<tool_call>\n{}\n</tool_call><|im_end|>")

    assert tokenizer.convert_tokens_to_ids("<tool_call>") in ids
    assert builder.end_of_turn not in ids


def test_feature_template_marks_the_instruction_and_nothing_else(tokenizer, builder):
    ids, start, end = builder.feature_ids("Click December 3")

    assert tokenizer.decode(ids[start:end]) == "Click December 3"
    assert tokenizer.decode(ids) == "<|im_start|>user\nClick December 3<|im_end|>\n"


def test_an_unknown_role_and_a_lone_surrogate_are_refused(builder):
    with pytest.raises(InvalidArgument) as role:
        builder.build(system=None, history=[Turn("tool", "x")], text="x", image_tokens=1)
    with pytest.raises(InvalidArgument) as surrogate:
        builder.build(system=None, history=[], text="\ud800", image_tokens=1)

    assert role.value.reason == "UNKNOWN_ROLE"
    assert surrogate.value.reason == "NOT_UNICODE"
