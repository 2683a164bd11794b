"""Bars are held against evaluations, and one that is missed says so."""

import pytest

from tests.support.study import stated
from training.study.bars import bars, mean_rates


def judged(first=None, second=None, fresh=None, second_fresh=None):
    given = (first, second, fresh, second_fresh)
    return {bar.name: bar for bar in bars(*(each or [stated()] * 3 for each in given))}


def test_all_are_met():
    found = judged()
    assert len(found) == 15
    assert [bar.name for bar in found.values() if not bar.met] == []
    assert found["own expert, mean over experts"].found == pytest.approx(0.95)
    assert found["soft / own expert"].found == pytest.approx(93 / 95)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gate accuracy, held-out", {"gate": 98}),
        ("gate accuracy falls with screens shuffled, held-out", {"shuffled": 100}),
        ("gate accuracy falls with text blanked, held-out", {"blanked": 100}),
        ("own expert, mean over experts", {"own": (0.7, 1.0)}),
        ("top-1 / own expert", {"top1": 94}),
        ("soft / own expert", {"soft": 92}),
        ("uniform clearly below top-1 and soft", {"uniform": 86}),
        ("wrong expert", {"wrong_expert": 31}),
    ],
)
def test_each_can_be_missed(name, changes):
    missed = [bar.name for bar in judged(first=[stated(**changes)] * 3).values() if not bar.met]
    assert name in missed


def test_stage_2_and_the_fresh_have_bars_of_their_own():
    found = judged(
        second=[stated(gate=99, top1=94, soft=92)] * 3,
        fresh=[stated(gate=94, blanked=95)] * 3,
        second_fresh=[stated(gate=93)] * 3,
    )
    assert [bar.name for bar in found.values() if not bar.met] == [
        "gate accuracy, fresh themes and sizes",
        "gate accuracy falls with text blanked, fresh themes and sizes",
        "stage 2, top-1, not below stage 1",
        "stage 2, soft, not below stage 1",
        "stage 2, gate, not below stage 1",
        "stage 2, gate on fresh, not below stage 1",
    ]


def test_the_same_counts_in_another_order_are_not_less():
    rates = [stated() | {"gate_accuracy": count / 88} for count in (84, 86, 85)]
    flat = [stated() | {"gate_accuracy": 85 / 88}] * 3
    assert judged(fresh=flat, second_fresh=rates)["stage 2, gate on fresh, not below stage 1"].met


def test_means_are_over_seeds_and_intervals_over_cases():
    rate = mean_rates([stated(gate=90), stated(gate=100)])["gate"]
    assert (rate["mean"], rate["values"], rate["n"]) == (0.95, [0.9, 1.0], 100)
    low, high = rate["wilson_95"]
    assert 0.88 < low < 0.95 < high < 0.98


def test_a_rate_without_cases_is_left_out():
    assert "base" not in mean_rates([stated() | {"base_accuracy": None}])
