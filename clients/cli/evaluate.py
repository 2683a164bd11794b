"""`molora evaluate`. Knows how to call the training room's measurements and print their results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli import connection, output
from clients.cli.connection import Json
from clients.cli.exits import refused_input

if TYPE_CHECKING:
    from training.judgement_report import Judgement


def evaluate(
    features: Annotated[
        Path, typer.Option(help="Feature cache of labelled cases, see `molora train features`.")
    ],
    bundle: Annotated[
        Path | None, typer.Option(help="Folder of the router bundle; unset: the miniature's.")
    ] = None,
    fit_thresholds: Annotated[
        bool, typer.Option("--fit-thresholds", help="Fit the bundle's thresholds and store them.")
    ] = False,
    max_risk: Annotated[
        float, typer.Option(help="Share of wrong decisions that a threshold may let through.")
    ] = 0.01,
    simulated_agent: Annotated[
        float | None,
        typer.Option(help="Where records carry no agent's hints: one that is right this often."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for a page with plots and a JSON file.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of cases and simulated agents.")] = 0,
    as_json: Json = False,
) -> None:
    """Measure the router's judgement on held-out cases; fit what it acts on."""
    with refused_input():
        from router_service.errors import BundleError
        from router_service.settings import EMBEDDED_BUNDLE
        from training.judgement import fit_bundle, read_bundle_cases
        from training.judgement_report import judge, write_judgement

        folder = bundle or EMBEDDED_BUNDLE
        try:
            if fit_thresholds:
                fit_bundle(
                    folder, features, max_risk=max_risk, reliability=simulated_agent, seed=seed
                )
            measured, cases = read_bundle_cases(folder, features, seed)
        except BundleError as error:
            raise ValueError(str(error)) from None
        judgement = judge(measured, cases, max_risk, seed)
        page = write_judgement(judgement, report) if report else None
    if as_json:
        output.print_json(connection.plain({"judgement": judgement, "report": page}))
        return
    _show(judgement)
    if page:
        output.console.print(f"report in {page}", markup=False)


def _show(judgement: Judgement) -> None:
    limits, rule = judgement.thresholds, judgement.abstention
    rows = [
        [name, "never" if limit.value is None else f"{limit.value:.4f}", limit.source, limit.why]
        for name, limit in (
            ("agent_fast_path", limits.agent_fast_path),
            ("agent_accept", limits.agent_accept),
            ("agent_veto", limits.agent_veto),
        )
    ]
    if rule:
        distance = "never" if rule.threshold is None else f"{rule.threshold:.4f}"
        rows.append(["abstention (distance)", distance, rule.source, rule.why])
    output.table(None, ("threshold", "value", "source", "why"), rows)
    agents = [
        [f"{each.reliability:.0%}", "yes" if each.confident else "no", each.agent.value,
         each.router.value, each.together.value, each.model.weight]
        for each in judgement.agents
    ]  # fmt: skip
    columns = ("agent is right", "says how sure", "agent", "router", "together", "weight")
    output.table(f"{judgement.cases} held-out images", columns, agents)
    point, (before, after) = judgement.point, judgement.ece
    covered = f"{point.cases / point.of:.3f}" if point else "none"
    low, high = judgement.accuracy.interval
    output.console.print(
        f"accuracy {judgement.accuracy.value:.3f} [{low:.3f}, {high:.3f}]  "
        f"calibration error {before:.4f} -> {after:.4f}  "
        f"coverage at risk {judgement.max_risk:g}: {covered}",
        markup=False,
    )
