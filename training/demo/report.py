"""Writes the demo's HTML page: one file, images inside, no script from anywhere.

Knows results and the template's needs; knows no service.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.demo.override import Override
from training.demo.run import CaseResult
from training.demo.summary import Summary
from training.pages import answer_text, data_url, mark_size, marks, render

TEMPLATE = Path(__file__).parent / "report.html.j2"


def write_report(
    path: Path, summary: Summary, results: Sequence[CaseResult], override: Override
) -> None:
    """Writes the page.

    Args:
        path: The HTML file; its folder exists.
        summary: The numbers on top.
        results: One card each.
        override: Shown with the command that was typed.
    """
    page = render(
        TEMPLATE,
        summary=summary,
        override=override,
        cards=[_card(result) for result in results],
        label=lambda name: name.replace("_", " "),
    )
    path.write_text(page, encoding="utf-8")


def _card(result: CaseResult) -> dict[str, Any]:
    case = result.case
    answers = [
        ("routed", result.prediction),
        (f"own expert ({case.expert})", result.oracle),
        (f"wrong expert ({result.other})", result.wrong),
        ("base only", result.base),
    ]
    gates = [
        {
            "expert": name,
            "gate": result.routed.gates.get(name, 0.0),
            "probability": result.routed.probabilities.get(name),
            "own": name == case.expert,
        }
        for name in result.routed.probabilities
    ]
    return {
        "result": result,
        "case": case,
        "image": data_url(case.screen),
        "expected": marks(case, case.expected),
        "predicted": marks(case, result.prediction.calls),
        "answers": [(name, answer_text(answer), answer.right) for name, answer in answers],
        "gates": gates,
        "mark_size": mark_size(case),
    }
