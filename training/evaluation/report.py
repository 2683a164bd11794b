"""Writes an evaluation's HTML page: one file, pictures inside, no script.

Knows the evaluation and the template's needs; counts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.charts import Axis, Line, chart
from training.evaluation.core import MODES
from training.evaluation.evaluation import Evaluation
from training.evaluation.examples import examples
from training.evaluation.pictures import Bar, bars, grouped, histogram
from training.evaluation.routing import NOBODY
from training.evaluation.scores import WRONG, Part
from training.pages import render
from training.scoring import Rate

if TYPE_CHECKING:
    from training.evaluation.runs import TrainingRun
    from training.judgement_report import Judgement
    from training.study.report import Table

TEMPLATE = Path(__file__).parent / "report.html.j2"
LABELS = {
    "oracle": "own expert",
    "top1": "top-1",
    "top2": "top-2",
    "soft": "soft",
    "uniform": "uniform",
    "random": "random expert",
    "base": "base alone",
    WRONG: "wrong expert",
}
# The router's own; what it is compared with.
_KINDS = {"oracle": "wanted", "top1": "found", "top2": "found", "soft": "found"}
_LINE_KINDS = 6


def write_report(
    path: Path,
    evaluation: Evaluation,
    judgement: Judgement | None = None,
    ablations: Table | None = None,
) -> None:
    """Writes the page.

    Args:
        path: The HTML file; its folder exists.
        evaluation: What it shows.
        judgement: What the bundle's thresholds were measured to be worth; has its own page too.
        ablations: Columns and rows of a study's.
    """
    page = render(
        TEMPLATE,
        evaluation=evaluation,
        whole=evaluation.whole,
        routing=evaluation.routing,
        judgement=judgement,
        ablations=ablations,
        labels=LABELS,
        modes=(*MODES, WRONG),
        choices=_choices(evaluation),
        pictures=_pictures(evaluation),
        cards=examples(evaluation.results, evaluation.experts),
    )
    path.write_text(page, encoding="utf-8")


def _pictures(evaluation: Evaluation) -> dict[str, Any]:
    """The charts by name; None where there is nothing to draw."""
    routing, experts = evaluation.routing, evaluation.experts
    uniform = math.log(len(experts)) if len(experts) > 1 else 1.0
    return {
        "modes": _modes_chart(evaluation.whole),
        "reliability": _reliability_chart(evaluation.whole),
        "risk": _risk_chart(evaluation) if routing.curve else None,
        "own_gate": histogram(routing.own_gates, 1.0, "gate of the case's own expert, soft"),
        "entropy": histogram(routing.entropies, uniform, "entropy of the probabilities, nats"),
        "marginals": _marginals_chart(evaluation),
        "pruning": _pruning_chart(evaluation) if len(experts) > 1 else None,
        "training": _training_chart(evaluation.runs) if evaluation.runs else None,
    }


def _choices(evaluation: Evaluation) -> list[str]:
    """Columns of the confusion matrix: nobody only where somebody was left undecided."""
    undecided = any(row[NOBODY] for row in evaluation.routing.confusion.values())
    return [*evaluation.experts, *([NOBODY] if undecided else [])]


def _modes_chart(part: Part) -> str:
    rows = []
    for mode in (*MODES, WRONG):
        rate = part.scores[mode].rate
        rows.append(_bar(LABELS[mode], rate, _KINDS.get(mode, "bound")))
    return bars(rows, "Score by mode")


def _bar(label: str, rate: Rate | None, kind: str) -> Bar:
    return Bar(label, rate.value if rate else None, rate.interval if rate else None, kind)


def _reliability_chart(part: Part) -> str | None:
    if part.calibrated is None:
        return None
    points = [(each.confidence, each.accuracy) for each in part.calibrated.bins]
    lines = [
        Line("perfect", "wanted", [(0.0, 0.0), (1.0, 1.0)]),
        Line("as served", "found", points, dots=True),
    ]
    return chart(lines, Axis("confidence", 0.0, 1.0), Axis("accuracy", 0.0, 1.0))


def _risk_chart(evaluation: Evaluation) -> str:
    curve = evaluation.routing.curve
    lines = [
        Line("95 % bound", "bound", [(point.coverage, point.bound) for point in curve]),
        Line("risk", "found", [(point.coverage, point.risk) for point in curve]),
    ]
    return chart(lines, Axis("coverage", 0.0, 1.0), Axis("risk", 0.0, 1.0), falling=True)


def _marginals_chart(evaluation: Evaluation) -> str:
    routing = evaluation.routing
    shown = (
        ("cases", "wanted", routing.labels),
        ("probability", "bound", routing.probabilities),
        ("top-1 gate", "found", routing.gates["top1"]),
    )
    groups = [
        (name, [Bar(label, shares[name], kind=kind) for label, kind, shares in shown])
        for name in evaluation.experts
    ]
    return grouped(groups, "Share of each expert")


def _pruning_chart(evaluation: Evaluation) -> str:
    rows = []
    for step in evaluation.pruning:
        label = f"{step.left} left" if step.removed else f"all {step.left}"
        rows.append(_bar(label, step.rate, "found"))
    return bars(rows, "Score of top-1 by experts left")


def _training_chart(runs: Sequence[TrainingRun]) -> str:
    lines = [
        Line(run.name, f"line-{number % _LINE_KINDS}", run.entropies)
        for number, run in enumerate(runs)
    ]
    longest = max(run.steps for run in runs)
    y = Axis("entropy of gates (uniform 1)", 0.0, 1.0)
    return chart(lines, Axis("step", 0.0, longest), y, falling=True)
