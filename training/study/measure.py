"""Evaluates bundles with real services, in one executor for all of them.

Knows the evaluation; does not know how a head was trained.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from molora_client import AsyncMolora
from training.evaluation.answers import AnswerBook
from training.evaluation.cases import read_cases
from training.evaluation.core import Case
from training.evaluation.evaluation import Evaluation, evaluated
from training.evaluation.run import run_cases
from training.services import router_started
from training.study.kept import Kept

MAX_NEW_TOKENS = 96
"""As `molora evaluate` has it."""
# Nobody waits for a single call, and on a small machine it waits for those beside it.
_TIMEOUT_S = 600.0

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Bench:
    """What stays the same while bundles change.

    Attributes:
        executor: Address of one that serves the experts.
        book: Answers by what was asked: most gates are those of another bundle too.
        kept: Gets a step for each bundle and set of cases.
    """

    executor: str
    book: AnswerBook
    kept: Kept

    def evaluate(
        self, name: str, bundle: Path, records: Path, cases: int | None, progress: Progress
    ) -> dict[str, Any]:
        """What `molora evaluate --json` states, without a line a case.

        Args:
            name: Of the step.
            bundle: The router's.
            records: The cases.
            cases: At most so many, experts in turn; None for all.
            progress: Called with (cases done, cases in all).
        """

        def run() -> dict[str, Any]:
            with router_started(self.executor, bundle) as router:
                asked = self._ask(router, read_cases(records, limit=cases), progress)
                stated = asyncio.run(asked).to_json()
            del stated["results"]
            return stated

        found: dict[str, Any] = self.kept.step(f"evaluate {name}", run)
        return found

    async def _ask(self, router: str, cases: Sequence[Case], progress: Progress) -> Evaluation:
        async with AsyncMolora(router, self.executor, timeout_s=_TIMEOUT_S) as client:
            run = await run_cases(
                client, cases, max_new_tokens=MAX_NEW_TOKENS, progress=progress, book=self.book
            )
        return evaluated(run)
