"""The part of `molora evaluate` that asks live services. Knows how to run it and show its numbers.

What is asked and counted is the training room's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.cli import output
from clients.cli.exits import failed_calls, refused_input
from clients.cli.services import asked_services, check_both
from molora_client import AsyncMolora, Molora, Tls

if TYPE_CHECKING:
    from router_service.bundle import Bundle
    from training.evaluation.core import Case
    from training.evaluation.evaluation import Evaluation
    from training.evaluation.run import Run
    from training.judgement_report import Judgement
    from training.scoring import Rate
    from training.services import Services
    from training.study.report import Table

STDOUT = Path("-")
PAGE = "evaluation.html"
# Screens that neither the miniature's parts nor what its router is fitted to have drawn.
DRAWN_SEED_OFFSET = 5_000_011


@dataclass(frozen=True)
class Asked:
    """What the flags say about a live evaluation.

    Attributes:
        records: None for the miniature's held-out ones.
        cases: At most so many; None for all.
        router: Address; with `executor` or not at all.
        bundle: That is judged, and of the router that is started where there are no addresses;
            None for the miniature's.
        runs: Folders of training runs to tabulate.
        concurrency: Cases at once; None for as many as the executor has slots.
    """

    records: Path | None
    images_root: Path | None
    cases: int | None
    router: str | None
    executor: str | None
    bundle: Path | None
    runs: Sequence[Path]
    concurrency: int | None
    max_new_tokens: int
    seed: int
    timeout_s: float
    tls: Tls | None
    token_file: Path | None

    def __post_init__(self) -> None:
        check_both(self.router, self.executor)

    @property
    def token(self) -> str | None:
        """The bearer token, if there is a file of it."""
        return self.token_file.read_text(encoding="utf-8").strip() if self.token_file else None


def evaluate_live(asked: Asked, *, as_json: bool) -> Evaluation:
    """Runs the evaluation.

    Raises:
        typer.Exit: 2 for records or runs that cannot be used, 64 + the gRPC code for a failed
            call, 1 if the services did not start.
    """
    from training.evaluation.cases import HELD_OUT, read_cases
    from training.evaluation.evaluation import evaluated
    from training.evaluation.runs import read_run

    with failed_calls(as_json), refused_input():
        runs = [read_run(folder) for folder in asked.runs]
        records = asked.records or HELD_OUT
        cases = read_cases(records, asked.images_root, asked.cases, asked.seed)
        with asked_services(asked.router, asked.executor, asked.bundle) as addresses:
            run = asyncio.run(_run(asked, addresses, cases))
    return evaluated(run, runs)


def check_served(asked: Asked, *, as_json: bool) -> None:
    """Holds the bundle that is to be judged against the one that the running router serves.

    Args:
        asked: Its bundle is judged; without a router's address there is nothing to hold it against.
        as_json: Print a failed call as JSON too.

    Raises:
        typer.Exit: 2 for another bundle or none, 64 + the gRPC code for a failed call.
    """
    if asked.router is None:
        return
    with (
        failed_calls(as_json),
        refused_input(),
        Molora(asked.router, token=asked.token, tls=asked.tls, timeout_s=asked.timeout_s) as client,
    ):
        served, judged = client.router_info().router_version, _bundle(asked).version
        if served != judged:
            raise ValueError(
                f"the router at {asked.router} serves the bundle {served[:12]}, and "
                f"{asked.bundle or 'the miniature'} is {judged[:12]}: name the folder of the "
                "served one with --bundle, or ask a router that serves this one"
            )


def draw(asked: Asked, folder: Path, images: int, *, as_json: bool) -> None:
    """Draws screens that the bundle is to be judged on, and extracts their features.

    Args:
        asked: Its bundle's experts are drawn; its executor is asked, or the miniature's started.
        folder: New or empty.
        images: Of all the experts together.
        as_json: Show no progress, and print a failed call as JSON too.

    Raises:
        typer.Exit: 2 for a folder, a bundle or experts that cannot be used, 64 + the gRPC code for
            a failed call, 1 if the services did not start.
    """
    from training.judged_screens import judged_screens

    with failed_calls(as_json), refused_input():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(
                f"{folder} is not empty: leave out --draw if that was drawn to its end, else "
                "choose a new folder"
            )
        experts = [expert.name for expert in _bundle(asked).manifest.experts]
        with (
            asked_services(asked.router, asked.executor, asked.bundle) as addresses,
            Molora(
                executor=addresses.executor,
                token=asked.token,
                tls=asked.tls,
                timeout_s=asked.timeout_s,
            ) as client,
        ):
            judged_screens(
                folder,
                client,
                experts,
                images=images,
                seed=asked.seed + DRAWN_SEED_OFFSET,
                progress=not as_json,
            )


def make_folders(json_file: Path | None, report: Path | None) -> None:
    """Makes what will be written into, before a long run finds out that it cannot.

    Raises:
        ValueError: A file cannot be written there.
        OSError: A folder cannot be made.
    """
    from training.outputs import check_writable

    for file in (json_file, report and report / PAGE):
        if file is not None and file != STDOUT:
            check_writable(file)


def write_page(
    evaluation: Evaluation, folder: Path, judgement: Judgement | None, ablations: Table | None
) -> Path:
    """Writes the page into a folder that is there.

    Returns:
        The page.

    Raises:
        typer.Exit: 2 if it cannot be written.
    """
    from training.evaluation.report import write_report

    with refused_input():
        write_report(folder / PAGE, evaluation, judgement, ablations)
    return folder / PAGE


def write_json(file: Path, value: object) -> None:
    """Writes a JSON file; `-` is stdout.

    Raises:
        typer.Exit: 2 if it cannot be written.
    """
    if file == STDOUT:
        output.print_json(value)
        return
    with refused_input():
        file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def show(evaluation: Evaluation) -> None:
    """The rates, overall with what they could be and by expert, on stdout."""
    from training.evaluation.core import MODES
    from training.evaluation.scores import WRONG

    modes = (*MODES, WRONG)
    whole, routing = evaluation.whole, evaluation.routing
    rates = {
        "gate": whole.gate,
        **{mode: whole.scores[mode].rate for mode in modes},
        "gate, screens shuffled": routing.shuffled.own,
        "gate, text blanked": routing.blanked.own,
    }
    output.table(
        None,
        ("all experts", "right", "n", "rate", "95 %"),
        [_rate(name, rate) for name, rate in rates.items()],
    )
    rows = []
    for name, part in evaluation.by_expert.items():
        scores = [part.scores[mode].rate for mode in modes]
        rows.append([name, part.cases, part.gate.value, *(s.value if s else None for s in scores)])
    output.table(None, ("expert", "cases", "gate", *modes), rows)
    headline = "  ".join(
        f"{mode} / oracle {'none' if ratio is None else f'{ratio:.3f}'}"
        for mode, ratio in whole.of_oracle.items()
    )
    error = f"{whole.calibrated.ece:.4f}" if whole.calibrated else "none"
    output.console.print(
        f"{headline}  macro-F1 {routing.macro_f1:.3f}  calibration error {error}  "
        f"{whole.vacuous} vacuous",
        markup=False,
    )


def _bundle(asked: Asked) -> Bundle:
    """The bundle that is judged.

    Raises:
        ValueError: It cannot be used.
    """
    from router_service.bundle import load_bundle
    from router_service.errors import BundleError
    from router_service.settings import EMBEDDED_BUNDLE

    try:
        return load_bundle(asked.bundle or EMBEDDED_BUNDLE)
    except BundleError as error:
        raise ValueError(str(error)) from None


def _rate(name: str, rate: Rate | None) -> list[Any]:
    if rate is None:
        return [name, None, 0, None, ""]
    low, high = rate.interval
    return [name, rate.passed, rate.n, rate.value, f"{low:.3f} to {high:.3f}"]


async def _run(asked: Asked, addresses: Services, cases: Sequence[Case]) -> Run:
    from training.evaluation.run import run_cases

    with output.progress("cases") as progress:
        async with AsyncMolora(
            addresses.router, addresses.executor, asked.token, asked.tls, asked.timeout_s
        ) as client:
            return await run_cases(
                client,
                cases,
                max_new_tokens=asked.max_new_tokens,
                seed=asked.seed,
                concurrency=asked.concurrency,
                progress=progress,
            )
