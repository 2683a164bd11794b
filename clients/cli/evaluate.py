"""`molora evaluate`. Knows how to call the training room's measurements and print their results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.cli import connection, evaluation, output
from clients.cli.connection import (
    ImagesRoot,
    JsonFile,
    LabelledRecords,
    RunningExecutor,
    RunningRouter,
    TimeoutS,
    TlsCa,
    TlsCert,
    TlsKey,
    TokenFile,
    client_tls,
)
from clients.cli.evaluation import STDOUT, Asked
from clients.cli.exits import refused_input

# Nobody waits for a single call, and on a small machine it waits for those beside it.
BATCH_TIMEOUT_S = 600.0

if TYPE_CHECKING:
    from training.judgement_report import Judgement
    from training.study.report import Table


def evaluate(
    records: LabelledRecords = None,
    images_root: ImagesRoot = None,
    cases: Annotated[
        int | None, typer.Option(min=1, help="At most so many, experts in turn; unset: all.")
    ] = None,
    router: RunningRouter = None,
    executor: RunningExecutor = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Cases at once; unset: the executor's slots.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 96,
    run: Annotated[
        list[Path] | None, typer.Option(help="Folder of a stage 2 or 3 run to list; repeatable.")
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(help="JSON of `python -m training.study`; its ablations go into the page."),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Feature cache of labelled cases, see `molora train features`: measure the "
            "bundle's judgement on it; without RECORDS, that alone."
        ),
    ] = None,
    draw: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="First fill --features, a new folder: so many new screens of the bundle's "
            "experts, and pictures that none of them knows.",
        ),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Folder of the router bundle; unset: the miniature's.")
    ] = None,
    fit_thresholds: Annotated[
        bool, typer.Option("--fit-thresholds", help="Fit the bundle's thresholds and store them.")
    ] = False,
    max_risk: Annotated[
        float, typer.Option(help="Share of wrong decisions that a threshold may let through.")
    ] = 0.01,
    max_refused: Annotated[
        float, typer.Option(help="Share of known screens that may be abstained from.")
    ] = 0.005,
    simulated_agent: Annotated[
        float | None,
        typer.Option(help="Where records carry no agent's hints: one that is right this often."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for pages with plots, and a JSON file of judgement.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of cases and all that is random.")] = 0,
    timeout_s: TimeoutS = BATCH_TIMEOUT_S,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    json_file: JsonFile = None,
) -> None:
    """Answer labelled cases in every mode, and measure the router's judgement.

    Asks a running router and executor, or starts the miniature's.
    """
    if features is None and (fit_thresholds or draw):
        raise typer.BadParameter("--fit-thresholds and --draw need --features")
    if bundle is not None and router is not None and features is None:
        raise typer.BadParameter("the router that --router names has a bundle of its own")
    live = records is not None or features is None
    if fit_thresholds and live and router is not None:
        raise typer.BadParameter(
            "--fit-thresholds makes another bundle than the one that --router serves: fit without "
            "RECORDS, and serve the fitted one"
        )
    if run and not live:
        raise typer.BadParameter("--run goes with cases that are answered: give RECORDS")
    if study is not None and not (report and live):
        raise typer.BadParameter("--study goes into the page of cases that are answered: --report")
    asked = Asked(
        records, images_root, cases, router, executor, bundle, run or (), concurrency,
        max_new_tokens, seed, timeout_s, client_tls(tls_ca, tls_cert, tls_key),
        token_file,
    )  # fmt: skip
    with refused_input():
        if features is not None:
            _check_shares(max_risk, max_refused, simulated_agent)
        evaluation.make_folders(json_file, report)
        ablations = _ablations(study) if study else None
    judgement, page = None, None
    if features is not None:
        # A report is of one router; without live answers a bundle that is named may be any.
        if live or bundle is None:
            evaluation.check_served(asked, as_json=json_file == STDOUT)
        if draw:
            evaluation.draw(asked, features, draw, as_json=json_file == STDOUT)
        judgement, page = _judge(
            features, bundle, report, fit=fit_thresholds, max_risk=max_risk,
            max_refused=max_refused, reliability=simulated_agent, seed=seed,
        )  # fmt: skip
    found = evaluation.evaluate_live(asked, as_json=json_file == STDOUT) if live else None
    if found and report:
        page = evaluation.write_page(found, report, judgement, ablations)
    if json_file is not None:
        stated: dict[str, Any] = found.to_json() if found else {}
        stated |= {"judgement": judgement.to_json() if judgement else None, "report": page}
        evaluation.write_json(json_file, connection.plain(stated))
    if json_file == STDOUT:
        return
    if found:
        evaluation.show(found)
    if judgement:
        _show(judgement)
    if page:
        output.console.print(f"report in {page}", markup=False)


def _check_shares(max_risk: float, max_refused: float, reliability: float | None) -> None:
    from training.judgement import check_shares

    check_shares(max_risk, max_refused, reliability)


def _ablations(study: Path) -> Table:
    from training.study.report import read_ablations

    return read_ablations(study)


def _judge(
    features: Path,
    bundle: Path | None,
    report: Path | None,
    *,
    fit: bool,
    max_risk: float,
    max_refused: float,
    reliability: float | None,
    seed: int,
) -> tuple[Judgement, Path | None]:
    """Fits the bundle if that is asked for, measures its judgement, and writes its page."""
    with refused_input():
        from router_service.errors import BundleError
        from router_service.settings import EMBEDDED_BUNDLE
        from training.held_out import read_unknown
        from training.judged_screens import load_unknown
        from training.judgement import fit_bundle, read_bundle_cases
        from training.judgement_report import judge, write_judgement

        folder = bundle or EMBEDDED_BUNDLE
        try:
            if fit:
                fit_bundle(
                    folder, features, max_risk=max_risk, max_refused=max_refused,
                    reliability=reliability, seed=seed,
                )  # fmt: skip
            measured, cases = read_bundle_cases(folder, features, seed)
        except BundleError as error:
            raise ValueError(str(error)) from None
        strangers = load_unknown(features)
        unknown = read_unknown(measured, strangers) if strangers else {}
        judgement = judge(measured, cases, max_risk, seed, unknown)
        page = write_judgement(judgement, report) if report else None
    return judgement, page


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
         each.router.value, each.together.value, each.loss, each.model.weight]
        for each in judgement.agents
    ]  # fmt: skip
    columns = ("agent is right", "says how sure", "agent", "router", "together", "lost", "weight")
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
    if found := judgement.refusals:
        groups = {"known": [found.known], "unknown": [*found.unknown.values()],
                  "of an expert left out": [*found.left_out.values()]}  # fmt: skip
        counts = (
            f"{what} {sum(rate.passed for rate in rates)} of {sum(rate.n for rate in rates)}"
            for what, rates in groups.items()
        )
        output.console.print(f"screens abstained from: {', '.join(counts)}", markup=False)
