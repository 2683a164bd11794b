"""The parts of a study in their order, and its JSON.

Knows who trains and who measures; does not know how either is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from training.evaluation.answers import AnswerBook
from training.evaluation.runs import TrainingRun, read_run
from training.run_bundle import BUNDLE_FOLDER
from training.services import executor_started, learning_flags
from training.study.bars import bars, mean_rates
from training.study.choices import LEARNT, Spec, best, choices, compare, extract, layers_of
from training.study.kept import Kept
from training.study.learn import ABLATIONS, Learner
from training.study.measure import Bench
from training.study.screens import Sizes, draw_sets, experts_in

Progress = Callable[[int, int], None]
Shown = Callable[[str], AbstractContextManager[Progress]]

PARTS = ("bars", "choices", "ablations", "stage3")
# Of each expert: an ablation is compared with its neighbours, not with a bar.
_ABLATION_CASES = 6


@dataclass(frozen=True)
class Plan:
    """What is studied, and how much of it.

    Attributes:
        model: The base.
        experts: Folder with one expert per folder.
        work: Folder of everything that is made on the way.
        seeds: Of heads and runs.
        sizes: How many screens.
        steps: Of stages 2 and 3.
        batch_rows: Records of a step.
        features: Cache that heads learn from, such as the shipped router's; None: one of screens
            drawn here. What the router should read is always compared on the latter.
    """

    model: Path
    experts: Path
    work: Path
    seeds: tuple[int, ...]
    sizes: Sizes
    steps: int
    batch_rows: int = 8
    features: Path | None = None

    @property
    def flags(self) -> list[str]:
        """Of an executor that serves it."""
        return learning_flags(self.model, self.experts)


class Study:
    """A study; what an earlier process finished is not done again.

    Args:
        plan: What is studied.
        kept: The finished steps.
        shown: Shows progress under a title.

    Raises:
        ValueError: There is no expert, or one whose screens cannot be drawn.
    """

    def __init__(self, plan: Plan, kept: Kept, shown: Shown) -> None:
        self.names = experts_in(plan.experts)
        self._plan = plan
        self._kept = kept
        self._shown = shown
        self._book = AnswerBook(plan.work / "answers.jsonl")
        self._features = plan.work / "features"
        with shown("screens") as progress:
            self._sets = draw_sets(plan.work / "screens", self.names, plan.sizes, progress)
        self._learner = Learner(
            plan.model, plan.experts, self._sets,
            plan.features or self._features / Spec().name / LEARNT, plan.work / "heads",
            plan.steps, plan.batch_rows,
        )  # fmt: skip

    def run(self, parts: Sequence[str]) -> dict[str, Any]:
        """The study's JSON.

        Args:
            parts: Of `PARTS`.
        """
        plan = self._plan
        if plan.features is None:
            self._extract(Spec())
        second = self._heads() if set(parts) - {"choices"} else []
        found: dict[str, Any] = {
            "experts": list(self.names),
            "seeds": list(plan.seeds),
            "sizes": asdict(plan.sizes),
            "steps": plan.steps,
            "choices": [], "best": {}, "bars": [], "stages": [], "per_expert": {},
            "masking": [], "pruning": [], "ablations": [],
        }  # fmt: skip
        if {"bars", "ablations"} & set(parts):
            with executor_started(*plan.flags) as executor:
                bench = Bench(executor, self._book, self._kept)
                if "bars" in parts:
                    found |= self._bars(bench, second)
                if "ablations" in parts:
                    found["ablations"] = self._ablations(bench)
        if "choices" in parts:
            found |= self._choices()
        if "stage3" in parts:
            found["stages"] += self._stage3(second)
        return found | {"seconds": self._kept.seconds()}

    def _extract(self, spec: Spec) -> dict[str, float]:
        with self._shown(f"features, {spec.name}"):
            return extract(spec, self._sets, self._plan.flags, self._features, self._kept)

    def _heads(self) -> list[Path]:
        """Stage 1 for every seed, and stage 2 from it; the bundles of stage 2."""
        bundles = []
        for seed in self._plan.seeds:
            with self._shown(f"stage 1, seed {seed}"):
                start = self._learner.stage1(seed, self._kept)
            with self._shown(f"stage 2, seed {seed}") as progress:
                bundles.append(self._learner.stage2(seed, start, self._kept, progress))
        return bundles

    def _bars(self, bench: Bench, second: Sequence[Path]) -> dict[str, Any]:
        first = [self._learner.stage1(seed, self._kept) for seed in self._plan.seeds]
        cases = {"held-out": self._sets.held_out, "fresh": self._sets.fresh_cases}
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for stage, bundles in (("stage 1", first), ("stage 2", second)):
            for name, records in cases.items():
                found[stage, name] = [
                    self._evaluate(bench, f"{stage} seed {seed}", bundle, records)
                    for seed, bundle in zip(self._plan.seeds, bundles, strict=True)
                ]
        own = found["stage 1", "held-out"]
        judged = bars(
            own,
            found["stage 2", "held-out"],
            found["stage 1", "fresh"],
            found["stage 2", "fresh"],
        )
        return {
            "bars": [asdict(bar) for bar in judged],
            "stages": [_stage(stage, name, each) for (stage, name), each in found.items()],
            "per_expert": own[0]["experts"],
            "masking": own[0]["masking"],
            "pruning": own[0]["pruning"],
        }

    def _choices(self) -> dict[str, Any]:
        compared = choices(layers_of(self._plan.model))
        specs = dict.fromkeys(choice.spec for choice in compared)
        extraction = {spec: self._extract(spec) for spec in specs}
        with self._shown("choices") as progress:
            rows = compare(
                compared, self._plan.seeds, self._features, self._kept,
                lambda done: progress(done, len(compared)),
            )  # fmt: skip
        for choice, row in zip(compared, rows, strict=True):
            row["extraction"] = extraction[choice.spec]
        return {"choices": rows, "best": best(rows)}

    def _ablations(self, bench: Bench) -> list[dict[str, Any]]:
        """Every run with every seed; one whose gates collapsed has no head to measure."""
        rows = []
        for name in ABLATIONS:
            folders, collapsed = {}, []
            for seed in self._plan.seeds:
                start = self._learner.stage1(seed, self._kept)
                with self._shown(f"stage 2, {name}, seed {seed}") as progress:
                    out, why = self._learner.ablation(name, seed, start, self._kept, progress)
                if why is None and (out / BUNDLE_FOLDER).is_dir():
                    folders[seed] = out
                else:
                    collapsed.append(f"seed {seed}: {why or 'it left no bundle'}")
            stated = [
                self._evaluate(
                    bench, f"ablation {name} seed {seed}", out / BUNDLE_FOLDER,
                    self._sets.held_out, _ABLATION_CASES * len(self.names),
                )
                for seed, out in folders.items()
            ]  # fmt: skip
            rows.append(
                {"name": name, "collapsed": collapsed,
                 "run": _mean_run([read_run(out) for out in folders.values()]),
                 "rates": mean_rates(stated) if stated else {}}
            )  # fmt: skip
        return rows

    def _stage3(self, starts: Sequence[Path]) -> list[dict[str, Any]]:
        """Its experts are others, so those of each seed get an executor of their own.

        A run whose gates collapsed left none; the row says so, and is missing where all did.
        """
        plan, stated = self._plan, []
        for seed, start in zip(plan.seeds, starts, strict=True):
            with self._shown(f"stage 3, seed {seed}") as progress:
                bundle, experts = self._learner.stage3(seed, start, self._kept, progress)
            if not bundle.is_dir():
                continue
            with executor_started(*learning_flags(plan.model, experts)) as executor:
                bench = Bench(executor, self._book, self._kept)
                name = f"stage 3 seed {seed}"
                stated.append(self._evaluate(bench, name, bundle, self._sets.held_out))
        lost = len(plan.seeds) - len(stated)
        name = f"stage 3 ({lost} of {len(plan.seeds)} seeds collapsed)" if lost else "stage 3"
        return [_stage(name, "held-out", stated)] if stated else []

    def _evaluate(
        self, bench: Bench, name: str, bundle: Path, records: Path, cases: int | None = None
    ) -> dict[str, Any]:
        # Its folder tells the cases: a study that asks more of them goes on with its heads.
        name = f"{name} {records.parent.name}"
        with self._shown(f"cases, {name}") as progress:
            return bench.evaluate(name, bundle, records, cases, progress)


def _mean_run(runs: Sequence[TrainingRun]) -> dict[str, Any] | None:
    """What was chosen, and how the runs ended on average; the rest is in their folders."""
    if not runs:
        return None
    chosen = ("gates", "granularity", "entropy_weight", "kl_weight", "balance_weight", "steps")
    ended = ("loss", "own_gate", "least_marginal")
    return {key: getattr(runs[0], key) for key in chosen} | {
        key: fmean(getattr(run, key) for run in runs) for key in ended
    }


def _stage(stage: str, name: str, evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    losses = [each["loss"] for each in evaluations]
    errors = [each["ece"] for each in evaluations if each["ece"] is not None]
    return {
        "name": stage,
        "set": name,
        "cases": evaluations[0]["cases"],
        "rates": mean_rates(evaluations),
        "losses": {
            mode: fmean(each[mode] for each in losses)
            for mode in losses[0]
            if all(each[mode] is not None for each in losses)
        },
        "ece": fmean(errors) if errors else None,
    }
