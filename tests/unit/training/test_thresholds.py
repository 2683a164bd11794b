"""Bounds against tables and against coin tosses; thresholds that keep what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.thresholds import (
    clopper_pearson_upper,
    conformal_limit,
    least_cases,
    risk_coverage,
    safe_threshold,
)


class TestClopperPearson:
    @pytest.mark.parametrize(
        ("mistakes", "cases", "confidence", "expected"),
        [
            # Two-sided 95 % tables have these as their upper ends.
            (0, 10, 0.975, 0.3085),
            (1, 10, 0.975, 0.4450),
            (5, 10, 0.975, 0.8129),
            (9, 10, 0.975, 0.9975),
            (10, 100, 0.975, 0.1762),
            # The rule of three.
            (0, 299, 0.95, 0.00997),
            (10, 10, 0.95, 1.0),
            (0, 0, 0.95, 1.0),
        ],
    )
    def test_known_values(
        self, mistakes: int, cases: int, confidence: float, expected: float
    ) -> None:
        assert clopper_pearson_upper(mistakes, cases, confidence) == pytest.approx(
            expected, abs=5e-5
        )

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.integers(1, 400), st.data(), st.floats(0.5, 0.999))
    def test_so_few_mistakes_have_just_that_probability(
        self, cases: int, data: st.DataObject, confidence: float
    ) -> None:
        mistakes = data.draw(st.integers(0, cases - 1))
        bound = clopper_pearson_upper(mistakes, cases, confidence)
        probability = sum(
            math.comb(cases, k) * bound**k * (1 - bound) ** (cases - k) for k in range(mistakes + 1)
        )
        assert probability == pytest.approx(1 - confidence, rel=1e-3)
        assert bound > mistakes / cases or mistakes == 0

    def test_many_cases(self) -> None:
        assert clopper_pearson_upper(4000, 100_000) == pytest.approx(0.0410, abs=1e-4)


def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores in [0.5, 1] that are right with just their own probability."""
    noise = np.random.default_rng(seed)
    scores = 1 - noise.random(n) ** 3 / 2
    return scores, noise.random(n) > scores


class TestSafeThreshold:
    def test_it_acts_on_as_many_as_it_may(self) -> None:
        scores, wrong = draw(20_000, 0)
        point = safe_threshold(scores, wrong, 0.02)
        assert point is not None
        assert point.mistakes / point.cases < point.bound <= 0.02
        assert 0.3 < point.cases / point.of < 0.8
        strict = safe_threshold(scores, wrong, 0.005)
        assert strict is not None
        assert strict.threshold > point.threshold

    def test_the_promise_is_kept_as_often_as_it_says(self) -> None:
        broken = 0
        for seed in range(200):
            scores, wrong = draw(1500, seed)
            point = safe_threshold(scores, wrong, 0.05, confidence=0.9)
            if point is not None:
                # Calibrated scores: the true risk is the mean of what is missing to 1.
                fine = draw(50_000, 999)[0]
                broken += float((1 - fine[fine >= point.threshold]).mean()) > 0.05
        assert broken <= 20

    def test_no_mistakes_but_too_few_cases(self) -> None:
        least = least_cases(0.01)
        assert least == 528
        enough = safe_threshold(np.ones(least), np.zeros(least, bool), 0.01)
        assert enough is not None
        assert (enough.threshold, enough.cases, enough.mistakes) == (1.0, least, 0)
        assert safe_threshold(np.ones(least - 1), np.zeros(least - 1, bool), 0.01) is None

    def test_nothing_to_go_by(self) -> None:
        assert safe_threshold(np.zeros(0), np.zeros(0, bool), 0.5) is None

    def test_cases_as_sure_as_the_last_are_all_counted(self) -> None:
        scores = np.array([1.0] * 400 + [0.5] * 600)
        wrong = np.array([False] * 400 + [True] + [False] * 599)
        point = safe_threshold(scores, wrong, 0.02)
        assert point is not None
        assert (point.cases, point.mistakes) == (1000, 1)


class TestRiskCoverage:
    def test_by_hand(self) -> None:
        scores = np.array([0.9, 0.8, 0.7, 0.6])
        wrong = np.array([False, False, True, False])
        points = risk_coverage(scores, wrong)
        assert [(p.threshold, p.coverage) for p in points] == [
            (0.9, 0.25), (0.8, 0.5), (0.7, 0.75), (0.6, 1.0)
        ]  # fmt: skip
        assert [p.risk for p in points] == pytest.approx([0, 0, 1 / 3, 1 / 4])
        assert all(p.bound > p.risk for p in points)

    def test_it_ends_at_all_cases(self) -> None:
        scores, wrong = draw(3000, 1)
        last = risk_coverage(scores, wrong)[-1]
        assert (last.coverage, last.risk) == (1.0, pytest.approx(wrong.mean()))


class TestConformal:
    def test_by_hand(self) -> None:
        values = np.arange(1.0, 100.0)  # 99 of them
        assert conformal_limit(values, 0.01) == 99.0
        assert conformal_limit(values, 0.1) == 90.0
        assert conformal_limit(values[:-1], 0.01) is None

    def test_it_is_exceeded_no_more_often(self) -> None:
        noise = np.random.default_rng(0)
        exceeded = []
        for _ in range(400):
            values = noise.exponential(size=300)
            limit = conformal_limit(values[:200], 0.05)
            assert limit is not None
            exceeded.append(float((values[200:] > limit).mean()))
        assert np.mean(exceeded) == pytest.approx(0.05, abs=0.006)
