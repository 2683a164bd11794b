"""Incremental text against the tokenizer's own decoding of the whole."""

from __future__ import annotations

import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from executor_service.engine.detokenizer import Detokenizer, TokenBytes

TEXT = 'Größe 漢字 👩‍🦰 naïve\n{"name": "computer_use"} ' * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(["computer_use naïve name " * 20], trainer)
    made.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    made.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return made


@pytest.fixture(scope="module")
def vocabulary(tokenizer) -> TokenBytes:
    return TokenBytes(tokenizer)


def run(vocabulary, ids, stop=()):
    detokenizer = Detokenizer(vocabulary, stop)
    deltas = []
    for token_id in ids:
        deltas.append(detokenizer.push(token_id))
        if detokenizer.stopped:
            return deltas
    return [*deltas, detokenizer.finish()]


def text_of(deltas) -> str:
    return "".join(delta.text for delta in deltas)


def ids_of(deltas) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.token_ids]


def test_the_byte_alphabet_is_the_library_s(vocabulary):
    from executor_service.engine.detokenizer import _byte_alphabet

    assert set(_byte_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(_byte_alphabet().values()) == list(range(256))


def test_deltas_join_to_the_whole_text_and_tokens(tokenizer, vocabulary):
    ids = tokenizer.encode(TEXT).ids
    deltas = run(vocabulary, ids)
    assert text_of(deltas) == TEXT
    assert ids_of(deltas) == ids


def test_no_delta_ends_within_a_character(tokenizer, vocabulary):
    ids = tokenizer.encode("👩‍🦰漢é").ids
    assert len(ids) > 8, "every character takes several tokens"
    deltas = run(vocabulary, ids)
    assert all("�" not in delta.text for delta in deltas)
    # A token comes out with the text that it ends, never before.
    assert all(delta.text for delta in deltas if delta.token_ids)


def test_any_ids_decode_as_the_library_decodes_them(tokenizer, vocabulary):
    chance = random.Random(1)
    for _ in range(300):
        ids = [chance.randrange(tokenizer.get_vocab_size()) for _ in range(chance.randrange(1, 12))]
        deltas = run(vocabulary, ids)
        assert text_of(deltas) == tokenizer.decode(ids, skip_special_tokens=True)
        assert ids_of(deltas) == ids


def test_an_answer_cut_within_a_character_ends_with_one_replacement(tokenizer, vocabulary):
    deltas = run(vocabulary, tokenizer.encode("a漢").ids[:-1])
    assert text_of(deltas[:-1]) == "a"
    assert deltas[-1].text == "�"


def test_control_tokens_have_no_text_and_plain_added_ones_have(tokenizer, vocabulary):
    assert vocabulary.of(tokenizer.token_to_id("<|im_end|>")) == b""
    assert vocabulary.of(tokenizer.token_to_id("<tool_call>")) == b"<tool_call>"
    assert vocabulary.of(10**6) == b""


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["use"], 'go "computer_'),
        (["\n"], 'go "computer_use" now'),
        (["nowhere", "compu"], 'go "'),
        (["er_us", "use"], 'go "comput'),
        (["missing"], 'go "computer_use" now\nend'),
    ],
)
def test_stop_strings_end_the_answer_before_them(tokenizer, vocabulary, stop, expected):
    ids = tokenizer.encode('go "computer_use" now\nend').ids
    deltas = run(vocabulary, ids, stop)
    assert text_of(deltas) == expected
    # Only tokens whose text is whole in the answer.
    handed = ids_of(deltas)
    assert handed == ids[: len(handed)]
    assert expected.startswith(tokenizer.decode(handed))


def test_a_beginning_of_a_stop_string_is_held_until_it_cannot_be_one(tokenizer, vocabulary):
    detokenizer = Detokenizer(vocabulary, ["abcd"])
    seen = []
    for character in "xabcxab":
        [token_id] = tokenizer.encode(character).ids
        seen.append(detokenizer.push(token_id).text)
    assert seen == ["x", "", "", "", "abcx", "", ""]
    assert detokenizer.finish().text == "ab"


def test_the_longest_possible_beginning_is_held(tokenizer, vocabulary):
    detokenizer = Detokenizer(vocabulary, ["aab"])
    texts = [detokenizer.push(tokenizer.encode(c).ids[0]).text for c in "aaab"]
    assert texts == ["", "", "a", ""]
    assert detokenizer.stopped
