"""Writes the demo's HTML page: one file, images inside, no script from anywhere.

Knows results and the template's needs; knows no service.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from molora_client import to_pixels
from training.data.calls import ToolCall
from training.demo.override import Override
from training.demo.run import Answer, CaseResult
from training.demo.summary import Summary
from training.scoring import default_tolerance

TEMPLATE = "report.html.j2"
_MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


@dataclass(frozen=True)
class Mark:
    """Where a call points: centre and the accepted radii, in pixels."""

    x: int
    y: int
    radius_x: float
    radius_y: float


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
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["call"] = call_text
    page = environment.get_template(TEMPLATE).render(
        summary=summary,
        override=override,
        cards=[_card(result) for result in results],
        label=lambda name: name.replace("_", " "),
    )
    path.write_text(page, encoding="utf-8")


def call_text(call: ToolCall) -> str:
    """A call in a few words, e.g. `left_click [498, 385]`."""
    arguments = {name: value for name, value in call.arguments.items() if name != "action"}
    coordinate = arguments.pop("coordinate", None)
    parts = [call.action, *([str(coordinate)] if coordinate is not None else [])]
    return " ".join([*parts, *(f"{name}={value}" for name, value in arguments.items())])


def answer_text(answer: Answer) -> str:
    """The calls of an answer; its raw text where it has none that can be read."""
    if not answer.calls:
        return answer.text.strip() or "(nothing)"
    return "; ".join(call_text(call) for call in answer.calls)


def _card(result: CaseResult) -> dict[str, Any]:
    case = result.case
    answers = [
        ("routed", result.prediction),
        (f"own expert ({case.expert})", result.oracle),
        *((f"wrong expert ({name})", answer) for name, answer in result.wrong.items()),
        ("base only", result.base),
    ]
    gates = [
        {
            "expert": name,
            "gate": result.routed.gates.get(name, 0.0),
            "probability": result.routed.probabilities.get(name),
            "own": name == case.expert,
        }
        for name in (case.expert, *result.wrong)
    ]
    return {
        "result": result,
        "case": case,
        "image": _data_url(case.screen),
        "expected": _marks(result, case.expected),
        "predicted": _marks(result, result.prediction.calls),
        "answers": [(name, answer_text(answer), answer.right) for name, answer in answers],
        "gates": gates,
        "mark_size": max(case.width, case.height) / 36,
    }


def _marks(result: CaseResult, calls: Sequence[ToolCall]) -> list[Mark]:
    """The calls that point at a place inside the screen."""
    case = result.case
    marks = []
    for call in calls:
        coordinate = call.arguments.get("coordinate")
        try:
            x, y = to_pixels(tuple(coordinate), width=case.width, height=case.height)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
        radius_x, radius_y = case.tolerance or default_tolerance(call)
        marks.append(Mark(x, y, radius_x * case.width / 1000, radius_y * case.height / 1000))
    return marks


def _data_url(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{_MIME[path.suffix.lower()]};base64,{content}"
