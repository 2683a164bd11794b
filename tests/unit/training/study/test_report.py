"""A study on a page: every table has its rows, and the picture is a file of its own."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import asdict

import pytest

from tests.support.study import stated
from training.study.bars import bars, mean_rates
from training.study.choices import best, choices, spread
from training.study.report import ablations_table, markdown, picture


@pytest.fixture
def rows():
    found = []
    for at, choice in enumerate(choices(5)):
        accuracy = {"held_out": spread([0.9 + at / 1000]), "unseen": spread([0.8, 0.9])}
        found.append(
            {
                "factor": choice.factor,
                "value": choice.value,
                "default": choice.default,
                "extraction": {"seconds_a_record": 0.0125},
                **accuracy,
            }
        )
    return found


@pytest.fixture
def study(rows):
    run = {
        "gates": "soft", "granularity": "per layer", "entropy_weight": 0.01, "kl_weight": 0.0,
        "balance_weight": 0.1, "loss": 0.25, "own_gate": 0.75, "least_marginal": 0.125,
    }  # fmt: skip
    seen = [stated()]
    rate = {"value": 0.5, "passed": 5, "n": 10, "wilson_95": [0.24, 0.76]}
    part = stated() | {"cases": 100, "wilson_95": {"oracle_accuracy": [0.89, 0.98]}}
    return {
        "experts": ["calendar", "desktop"],
        "seeds": [0, 1],
        "command": "python -m training.study",
        "choices": rows,
        "best": best(rows),
        "bars": [asdict(bar) for bar in bars(seen, [stated(soft=90)], seen, seen)],
        "stages": [
            {"name": "stage 1", "set": "held-out", "cases": 100, "rates": mean_rates([stated()]),
             "losses": {"top1": 0.125, "soft": 0.25}, "ece": None},
        ],
        "per_expert": {"desktop": part},
        "ablations": [
            {"name": "per layer", "collapsed": [], "run": run, "rates": mean_rates([stated()])},
            {"name": "from nothing", "collapsed": ["seed 0: the gates have collapsed"],
             "run": None, "rates": {}},
        ],
        "masking": [
            {"expert": "desktop", "everyone": rate, "own": None, "others": rate, "cost": 0.25}
        ],
        "pruning": [{"left": 1, "removed": "calendar", "rate": rate}],
        "seconds": {"stage 1 seed 0": 12.4},
    }  # fmt: skip


def test_the_page_has_every_table(study):
    page = markdown(study)
    lines = page.splitlines()
    assert "calendar, desktop; seeds 0, 1. `python -m training.study`" in lines
    assert "| text layer | 2 (default) | 0.901 ± 0.000 | 0.850 ± 0.071 | 12 |" in lines
    assert "| text layer | **4** | 0.903 ± 0.000 | 0.850 ± 0.071 | 12 |" in lines
    assert any(line.startswith("| stage 2, soft, not below stage 1 | 0.900 | ≥ 0.930 | NO |")
               for line in lines)  # fmt: skip
    assert any(line.startswith("| stage 1 | 100 held-out | 1.000 | 0.950 |") for line in lines)
    assert any(line.startswith("| desktop | 100 | 1.000 |") for line in lines)
    assert "| stage 1 | 100 held-out |  | 0.125 |  | 0.250 |  |  |  |  |" in lines
    assert "| desktop | 0.500 [0.24, 0.76] |  | 0.500 [0.24, 0.76] | 0.250 |" in lines
    assert "| 1 | calendar | 0.500 [0.24, 0.76] |" in lines
    assert "| stage 1 seed 0 | 12 |" in lines


def test_a_part_that_was_not_run_has_no_table(study):
    assert "## Ablations" in markdown(study)
    assert "## Ablations" not in markdown(study | {"ablations": []})


def test_a_run_that_collapsed_says_so(study):
    columns, (layered, collapsed) = ablations_table(study)
    assert len(layered) == len(collapsed) == len(columns)
    assert layered[:3] == ("per layer", "soft", "per layer")
    assert layered[-4:-2] == ("1.000 [0.96, 1.00]", "0.950 [0.89, 0.98]")
    assert collapsed[:2] == ("from nothing; seed 0: the gates have collapsed", "")


def test_the_picture_stands_alone(rows):
    root = ElementTree.fromstring(picture(rows))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "layer 2 *" in texts
    assert "source fused" in texts
    assert "text mean *" in texts
    assert "vision mean" in texts
    assert "unseen themes and sizes" in texts


def test_the_best_of_each_factor_and_the_default_where_nothing_is_better(rows):
    for row in rows:
        row["unseen"] = row["held_out"] = {"mean": 1.0}
    assert best(rows) == {
        "text layer": "2", "text pooling": "mean", "vision source": "levels",
        "vision pooling": "statistics", "width": "128", "mixup": "0.4", "averaging": "0.995",
    }  # fmt: skip
    rows[3]["unseen"] = {"mean": 1.1}
    assert best(rows)["text layer"] == "4"
