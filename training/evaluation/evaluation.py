"""An evaluation as a whole, and its form as JSON. Knows what is counted; shows nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.evaluation.core import CaseResult
from training.evaluation.removal import Pruned, Removal, pruning, removals
from training.evaluation.routing import Control, Routing, routing
from training.evaluation.run import Run
from training.evaluation.scores import Part, by, crossed, grouped, measure
from training.scoring import Rate
from training.stated import plain

if TYPE_CHECKING:
    from training.evaluation.runs import TrainingRun

GROUPS: Mapping[str, Callable[[CaseResult], str]] = {
    "source": lambda result: result.case.source,
    "task type": lambda result: result.case.task_type,
    "screen size": lambda result: f"{result.case.width}x{result.case.height}",
}


@dataclass(frozen=True)
class Evaluation:
    """Everything that was found out.

    Attributes:
        experts: That the router knows, in its order.
        whole: Over all the cases.
        by_expert: Over the cases of each expert that has any, in the router's order.
        routing: The router's decisions on all the cases.
        by_source: And on those of each source.
        groups: What cases are grouped by, to a group's name, to its numbers.
        crossed: Case's expert to answering expert to the rate.
        removals: One expert masked at a time.
        pruning: Down to one expert.
        runs: Training runs that are compared.
        results: One a case.
        environment: What ran.
        seconds: From the first question to the last answer.
    """

    experts: tuple[str, ...]
    whole: Part
    by_expert: Mapping[str, Part]
    routing: Routing
    by_source: Mapping[str, Routing]
    groups: Mapping[str, Mapping[str, Part]]
    crossed: Mapping[str, Mapping[str, Rate | None]]
    removals: tuple[Removal, ...]
    pruning: tuple[Pruned, ...]
    runs: tuple[TrainingRun, ...]
    results: tuple[CaseResult, ...]
    environment: Mapping[str, str]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The content of the JSON file. No prompt, no path and no answer is in it."""
        return {
            **_part(self.whole),
            "experts": {name: _part(part) for name, part in self.by_expert.items()},
            "router": _routing(self.routing, self.whole),
            "controls": _controls(self.routing),
            "router_by_source": {
                name: _routing(found, self.groups["source"][name]) | {"controls": _controls(found)}
                for name, found in self.by_source.items()
            },
            "groups": {
                what: {name: _part(part) for name, part in groups.items()}
                for what, groups in self.groups.items()
            },
            "experts_on_cases_of": {
                own: {name: plain(rate) for name, rate in row.items()}
                for own, row in self.crossed.items()
            },
            "masking": [plain(each) for each in self.removals],
            "pruning": [plain(each) for each in self.pruning],
            "training_runs": [plain(run) for run in self.runs],
            "results": [_result(result) for result in self.results],
            "environment": dict(self.environment),
            "seconds": self.seconds,
        }


def evaluated(run: Run, runs: Sequence[TrainingRun] = ()) -> Evaluation:
    """Counts what was answered.

    Args:
        run: At least one case.
        runs: Training runs to show beside it.
    """
    results, experts = run.results, run.experts
    parts = by(results, lambda result: result.case.expert)
    return Evaluation(
        experts=experts,
        whole=measure(results),
        by_expert={name: parts[name] for name in experts if name in parts},
        routing=routing(results, experts),
        by_source={
            name: routing(group, experts)
            for name, group in grouped(results, GROUPS["source"]).items()
        },
        groups={what: by(results, key) for what, key in GROUPS.items()},
        crossed=crossed(results, experts),
        removals=removals(results, experts),
        pruning=pruning(results, experts),
        runs=tuple(runs),
        results=results,
        environment=run.environment,
        seconds=run.seconds,
    )


def _part(part: Part) -> dict[str, Any]:
    rates = {"gate": part.gate, **{mode: score.rate for mode, score in part.scores.items()}}
    calibrated = part.calibrated
    return {
        "cases": part.cases,
        "vacuous": part.vacuous,
        "cut": part.cut,
        **{f"{name}_accuracy": rate.value if rate else None for name, rate in rates.items()},
        "of_oracle": part.of_oracle,
        "ece": calibrated.ece if calibrated else None,
        "entropy": calibrated.entropy if calibrated else None,
        "counts": {f"{name}_accuracy": [r.passed, r.n] for name, r in rates.items() if r},
        "wilson_95": {f"{name}_accuracy": list(r.interval) for name, r in rates.items() if r},
        "loss": {mode: score.loss for mode, score in part.scores.items()},
    }


def _routing(routing: Routing, whole: Part) -> dict[str, Any]:
    shown: dict[str, Any] = plain(routing)
    # The first three have a place of their own, the others are one number a case.
    for name in ("shuffled", "blanked", "size_alone", "own_gates", "entropies"):
        del shown[name]
    return {**shown, "reliability": plain(whole.calibrated.bins if whole.calibrated else ())}


def _controls(routing: Routing) -> dict[str, Any]:
    return {
        "screens_shuffled": _control(routing.shuffled),
        "text_blanked": _control(routing.blanked),
        "size_alone": {"accuracy": plain(routing.size_alone)},
    }


def _control(control: Control) -> dict[str, Any]:
    return {"accuracy": plain(control.own), "follows_screen": plain(control.other)}


def _result(result: CaseResult) -> dict[str, Any]:
    answers = result.answers.items()
    return {
        "id": result.case.id,
        "expert": result.case.expert,
        "vacuous": result.case.vacuous,
        "routed": result.chosen,
        "passed": [mode for mode, answer in answers if answer and answer.right],
    }
