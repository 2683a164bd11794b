"""`molora export`. Knows how to call the training room's export and print what it measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clients.cli import connection, output
from clients.cli.connection import Json
from clients.cli.exits import refused_input


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of stage 2 or 3.")],
    out: Annotated[Path, typer.Argument(help="Folder of the router bundle.")],
    features: Annotated[
        Path,
        typer.Option(
            help="Feature cache of labelled screens that the run has not learnt from, with the "
            "experts that the bundle is for: after stage 3, those that it wrote."
        ),
    ],
    known: Annotated[
        Path | None,
        typer.Option(help="Cache of the looks that the router is to know; unset: those of it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the router bundle of a run that was trained without --features."""
    with refused_input():
        from training.run_bundle import export_run

        result = export_run(run, out, features, known)
    if as_json:
        stated = {
            "bundle": out,
            "accuracy": result.accuracy,
            "cases": result.cases,
            "temperature": result.temperature,
        }
        output.print_json(connection.plain(stated))
        return
    rows = [[name, result.cases[name], value] for name, value in result.accuracy.items()]
    output.table(None, ("split", "cases", "accuracy"), rows)
    output.console.print(f"temperature {result.temperature:.3f}; bundle in {out}", markup=False)
