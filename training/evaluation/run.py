"""Asks about many cases at once, as many as the executor has slots.

Knows the order of things; knows neither how one case is asked nor how anything is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from molora_client import AsyncMolora, InvalidArgumentError, RouterInfo, ServerInfo
from training.evaluation.answers import AnswerBook
from training.evaluation.asks import Ways, ask_case
from training.evaluation.cases import check_known, with_other_screens
from training.evaluation.core import Case, CaseResult

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Run:
    """What was asked and answered.

    Attributes:
        experts: That the router knows, in its order.
        results: One a case, in the cases' order.
        environment: What ran: digests, versions, device.
        seconds: From the first question to the last answer.
    """

    experts: tuple[str, ...]
    results: tuple[CaseResult, ...]
    environment: Mapping[str, str]
    seconds: float


async def run_cases(
    client: AsyncMolora,
    cases: Sequence[Case],
    *,
    max_new_tokens: int,
    seed: int = 0,
    concurrency: int | None = None,
    progress: Progress | None = None,
    book: AnswerBook | None = None,
) -> Run:
    """Routes and answers every case in every way.

    Args:
        client: Connected to both services.
        cases: At least one.
        max_new_tokens: Longest answer.
        seed: Of the experts that chance picks, and of the control's screens.
        concurrency: Cases at once; None for as many as the executor has slots.
        progress: Called with (cases done, cases in all).
        book: Answers of earlier runs over the same experts; gets those of this one.

    Raises:
        ValueError: A case is of an expert that the router does not know, or a service refuses its
            screen or its prompt.
        MoloraError: A call failed.
    """
    server, router = await client.server_info(), await client.router_info()
    experts = tuple(expert.name for expert in router.experts)
    check_known(cases, experts)
    # An empty book is false.
    book = AnswerBook() if book is None else book
    ways = Ways(experts, server.expert_set, max_new_tokens, seed, book)
    start = time.monotonic()
    results = await _all(
        client, cases, ways, max(1, concurrency or server.limits.slots), progress or _silent
    )
    seconds = time.monotonic() - start
    return Run(experts, tuple(results), _environment(server, router), seconds)


async def _all(
    client: AsyncMolora, cases: Sequence[Case], ways: Ways, workers: int, progress: Progress
) -> list[CaseResult]:
    waiting = iter(enumerate(zip(cases, with_other_screens(cases, ways.seed), strict=True)))
    results: dict[int, CaseResult] = {}

    async def work() -> None:
        for at, (case, other) in waiting:
            results[at] = await _asked(client, case, other, ways)
            progress(len(results), len(cases))

    progress(0, len(cases))
    tasks = [asyncio.create_task(work()) for _ in range(min(workers, len(cases)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        # After a failure nobody reads what the others would ask.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [results[at] for at in range(len(cases))]


async def _asked(client: AsyncMolora, case: Case, other: Case, ways: Ways) -> CaseResult:
    """As `ask_case`; of many cases it matters which one cannot be asked."""
    try:
        return await ask_case(client, case, other, ways)
    except InvalidArgumentError as error:
        raise ValueError(
            f"record {case.id} with {case.screen.name} cannot be asked, or not with the screen of "
            f"{other.id} in its place: {error.message}"
        ) from error


def _silent(done: int, total: int) -> None:
    """Shows nothing."""


def _environment(server: ServerInfo, router: RouterInfo) -> dict[str, str]:
    return {
        "model": server.model,
        "device": f"{server.device}, {server.dtype}",
        "experts": ", ".join(f"{each.name} {each.digest[:12]}" for each in router.experts),
        "expert set": server.expert_set,
        "feature spec": server.feature_spec.digest,
        "router bundle": router.router_version,
        "routing mode": f"{router.mode.value if router.mode else '?'} ({router.mode_reason})",
        "temperature": f"{router.temperature:.3f} ({router.temperature_reason})",
    }
