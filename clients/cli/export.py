"""`molora export`. Knows how to call the training room's export of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clients.cli.connection import Json
from clients.cli.train import print_head, stopped_runs


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of stage 2 or 3.")],
    out: Annotated[Path, typer.Argument(help="Folder of the router bundle.")],
    features: Annotated[
        Path,
        typer.Option(
            help="Feature cache of labelled screens that the run has not learnt from, with "
            "experts of the same names."
        ),
    ],
    known: Annotated[
        Path | None,
        typer.Option(help="Cache of the looks that the router is to know; unset: those of it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the router bundle of a run that was trained without --features."""
    with stopped_runs():
        from training.run_bundle import export_run

        result = export_run(run, out, features, known)
    print_head(result, out, as_json=as_json)
