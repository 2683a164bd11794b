"""`molora train features|stage1`. Knows how to call the training rooms and print their results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clients.cli import connection, output
from clients.cli.connection import Executor, Json
from clients.cli.exits import failed_calls, refused_input

app = typer.Typer(help="The router's head.", no_args_is_help=True)


@app.command("features")
def features(
    records: Annotated[Path, typer.Argument(help="JSONL file of labelled records.")],
    out: Annotated[Path, typer.Argument(help="Folder of the feature cache.")],
    images_root: Annotated[
        Path | None, typer.Option(help="What image paths are relative to; unset: the file's.")
    ] = None,
    executor: Executor = connection.EXECUTOR,
    as_json: Json = False,
) -> None:
    """Extract the router's features of a data set from a running executor."""
    from training.features import cache_features

    root = images_root or records.parent
    with failed_calls(as_json), refused_input():
        index = cache_features(records, root, executor, out, progress=not as_json)
    if as_json:
        output.print_json(connection.plain(index))
        return
    output.console.print(
        f"{', '.join(index.names)}: {len(index.shards)} shards in {out}; "
        f"refused {index.refused_rows} rows",
        markup=False,
    )


@app.command("stage1")
def stage1(
    features: Annotated[Path, typer.Argument(help="Folder of the feature cache.")],
    out: Annotated[Path, typer.Argument(help="Folder of the router bundle.")],
    seed: Annotated[int, typer.Option(help="Of splits, weights and batches.")] = 0,
    as_json: Json = False,
) -> None:
    """Train the head on cached features and write its bundle."""
    with refused_input():
        from training.export import export_bundle
        from training.stage1 import Stage1Config, train_stage1

        result = train_stage1(features, config=Stage1Config(seed=seed), progress=not as_json)
        bundle = export_bundle(result, out)
    if as_json:
        stated = {
            "bundle": bundle,
            "accuracy": result.accuracy,
            "cases": result.cases,
            "temperature": result.temperature,
            "calibration": result.calibration,
            "mode": result.mode,
        }
        output.print_json(connection.plain(stated))
        return
    rows = [[name, result.cases[name], value] for name, value in result.accuracy.items()]
    output.table(None, ("split", "cases", "accuracy"), rows)
    output.console.print(
        f"temperature {result.temperature:.3f}, mode {result.mode.value.value}; bundle in {bundle}",
        markup=False,
    )
