"""Token choice from known logits."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from executor_service.engine.sampler import Choice, Sampler, choose
from executor_service.engine.work import SamplingParams
from service_chassis.errors import Internal

# Probabilities 0.5, 0.3, 0.15, 0.05 at temperature 1, in mixed order.
PROBABILITIES = [0.15, 0.5, 0.05, 0.3]
LOGITS = torch.tensor(PROBABILITIES).log()


def sample(sampler: Sampler, logits: torch.Tensor) -> int:
    [choice] = choose([sampler], logits[None])
    if isinstance(choice, Exception):
        raise choice
    return choice.token_id


def draw(count: int, **params: object) -> Counter[int]:
    sampler = Sampler(SamplingParams(**params))
    return Counter(sample(sampler, LOGITS) for _ in range(count))


def test_greedy_takes_the_largest_and_needs_no_seed():
    assert draw(20) == {1: 20}


def test_greedy_takes_the_first_of_equals():
    assert sample(Sampler(SamplingParams()), torch.tensor([0.0, 2.0, 2.0])) == 1


def test_shares_follow_the_probabilities():
    shares = draw(4000, temperature=1.0, seed=3)
    for token, probability in enumerate(PROBABILITIES):
        assert shares[token] / 4000 == pytest.approx(probability, abs=0.03)


def test_temperature_sharpens_and_flattens():
    sharp = draw(1000, temperature=0.3, seed=3)
    flat = draw(1000, temperature=5.0, seed=3)
    assert sharp[1] > draw(1000, temperature=1.0, seed=3)[1] > flat[1]
    assert min(flat[token] for token in range(4)) > 120


def test_a_tiny_temperature_is_greedy_and_does_not_overflow():
    assert draw(50, temperature=1e-30, seed=1) == {1: 50}


@pytest.mark.parametrize(
    ("top_k", "allowed"), [(1, {1}), (2, {1, 3}), (4, {0, 1, 2, 3}), (99, {0, 1, 2, 3})]
)
def test_top_k(top_k, allowed):
    assert set(draw(500, temperature=2.0, top_k=top_k, seed=5)) == allowed


@pytest.mark.parametrize(
    ("top_p", "allowed"),
    [(0.01, {1}), (0.49, {1}), (0.79, {1, 3}), (0.81, {0, 1, 3}), (1.0, {0, 1, 2, 3})],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, allowed):
    assert set(draw(800, temperature=1.0, top_p=top_p, seed=5)) == allowed


def test_top_k_comes_before_top_p():
    # Of the two likeliest (0.625, 0.375 among themselves), 0.6 keeps one.
    assert set(draw(200, temperature=1.0, top_k=2, top_p=0.6, seed=5)) == {1}


def test_a_seed_repeats_and_no_seed_does_not():
    def tokens(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
        return [sample(sampler, LOGITS) for _ in range(60)]

    assert tokens(2**64 - 1) == tokens(2**64 - 1)
    assert tokens(1) != tokens(2)
    assert tokens(None) != tokens(None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(value, temperature):
    with pytest.raises(Internal):
        sample(Sampler(SamplingParams(temperature=temperature)), torch.tensor([0.0, value, 1.0]))


def test_tokens_with_logit_minus_infinity_are_never_taken():
    logits = torch.tensor([0.0, -float("inf"), 0.0])
    sampler = Sampler(SamplingParams(temperature=10.0, seed=1))
    assert {sample(sampler, logits) for _ in range(200)} == {0, 2}


def test_rows_are_chosen_together_as_each_would_be_alone():
    params = [SamplingParams(), SamplingParams(temperature=1.0, seed=4), SamplingParams(top_k=1)]
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    alone = [sample(Sampler(one), row) for one, row in zip(params, logits, strict=True)]
    together = choose([Sampler(one) for one in params], logits)
    assert [choice.token_id for choice in together] == alone


def test_a_row_that_fails_leaves_the_others_alone():
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 0.0], [2.0, 1.0]])
    first, failed, last = choose([Sampler(SamplingParams()) for _ in range(3)], logits)
    assert (first, last) == (Choice(1, None), Choice(0, None))
    assert isinstance(failed, Internal)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_log_probabilities_are_the_models_own_whatever_the_temperature(temperature):
    params = SamplingParams(temperature=temperature, seed=1, log_probabilities=True)
    [choice, silent] = choose(
        [Sampler(params), Sampler(SamplingParams())], torch.stack([LOGITS] * 2)
    )
    expected = float(LOGITS.log_softmax(-1)[choice.token_id])
    assert choice.log_probability == pytest.approx(expected, abs=1e-6)
    assert silent.log_probability is None
