"""`molora train expert|features|stage1|stage2|stage3`.

Knows how to call the training rooms and print their results.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from clients.cli import connection, output
from clients.cli.connection import (
    Executor,
    Json,
    TimeoutS,
    TlsCa,
    TlsCert,
    TlsKey,
    TokenFile,
)
from clients.cli.exits import BAD_INPUT, refused_input

if TYPE_CHECKING:
    from training.outcome import Outcome
    from training.run_config import RunConfig
    from training.stage1 import Stage1Result

app = typer.Typer(help="Experts, and the router's head.", no_args_is_help=True)

# The configuration of a run reads its own flags, and prints its own help.
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
# Of one call: an executor that serves others as well may let it wait.
FEATURES_TIMEOUT_S = 120.0
Result = TypeVar("Result", covariant=True)


@app.command("expert", context_settings=PASS_ON)
def expert(context: typer.Context, as_json: Json = False) -> None:
    """Train one expert; flags are the run's, see `molora train expert --help`."""
    from training.expert import train_expert

    made = _run("expert", context.args, train_expert)
    if made is None:
        return
    if as_json:
        output.print_json(connection.plain(made))
        return
    output.console.print(
        f"loss {made.loss:.4f} nats a token, {made.modules} modules; expert in {made.directory}",
        markup=False,
    )


@app.command("features")
def features(
    records: Annotated[Path, typer.Argument(help="JSONL file of labelled records.")],
    out: Annotated[Path, typer.Argument(help="Folder of the feature cache.")],
    images_root: Annotated[
        Path | None, typer.Option(help="What image paths are relative to; unset: the file's.")
    ] = None,
    executor: Executor = connection.EXECUTOR,
    timeout_s: TimeoutS = FEATURES_TIMEOUT_S,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Extract the router's features of a data set from a running executor."""
    from training.extraction import cache_features

    root = images_root or records.parent
    asked = connection.connected(
        executor=executor,
        timeout_s=timeout_s,
        tls=connection.client_tls(tls_ca, tls_cert, tls_key),
        token_file=token_file,
        as_json=as_json,
    )
    with refused_input(), asked as client:
        index = cache_features(records, root, client, out, progress=not as_json)
    if as_json:
        output.print_json(connection.plain(index))
        return
    output.console.print(
        f"{', '.join(index.names)}: {len(index.shards)} shards in {out}; "
        f"refused {index.refused_rows} rows",
        markup=False,
    )


@app.command("stage1", context_settings=PASS_ON)
def stage1(context: typer.Context, as_json: Json = False) -> None:
    """Train the head on cached features; see `molora train stage1 --help`."""
    with stopped_runs():
        from training.stage1_config import Stage1Run
        from training.stage1_run import run_stage1

        run = Stage1Run.read(context.args, "molora train stage1")
        result, bundle = run_stage1(run, progress=not as_json)
    print_head(result, bundle, as_json=as_json)


@app.command("stage2", context_settings=PASS_ON)
def stage2(context: typer.Context, as_json: Json = False) -> None:
    """Train the head by the answers, experts frozen; see `molora train stage2 --help`."""
    from training.stage2 import train_stage2

    _print(_run("stage2", context.args, train_stage2), as_json)


@app.command("stage3", context_settings=PASS_ON)
def stage3(context: typer.Context, as_json: Json = False) -> None:
    """Train head and experts together; see `molora train stage3 --help`."""
    from training.stage3 import train_stage3

    _print(_run("stage3", context.args, train_stage3), as_json)


def print_head(result: Stage1Result, bundle: Path, *, as_json: bool) -> None:
    """What was measured of a head that is in a bundle now."""
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
    _print_accuracy(result.accuracy, result.cases)
    output.console.print(
        f"temperature {result.temperature:.3f}, mode {result.mode.value.value}; bundle in {bundle}",
        markup=False,
    )


def _print_accuracy(accuracy: Mapping[str, float], cases: Mapping[str, int]) -> None:
    from training.scoring import wilson_interval

    rows = []
    for split, share in accuracy.items():
        low, high = wilson_interval(share * cases[split], cases[split])
        rows.append([split, cases[split], share, f"{low:.3f} to {high:.3f}"])
    output.table(None, ("split", "cases", "accuracy", "95 %"), rows)


class _Training(Protocol[Result]):
    def __call__(
        self, config: RunConfig, *, progress: Callable[[int, int], None] | None = None
    ) -> Result: ...


def _run(verb: str, flags: Sequence[str], train: _Training[Result]) -> Result | None:
    """Runs to the end; None in all processes but the first, which alone shows anything."""
    from training.processes import this_process
    from training.run_config import RunConfig

    with stopped_runs():
        config = RunConfig.read(flags, f"molora train {verb}")
        process = this_process()
        try:
            if not process.is_main_process:
                train(config)
                return None
            with output.progress(verb) as advance:
                return train(config, progress=advance)
        finally:
            process.destroy_process_group()


@contextlib.contextmanager
def stopped_runs() -> Iterator[None]:
    """Turns what cannot be used into 2, and a run that must not go on into 1."""
    from executor_service.errors import NotLoadable
    from router_service.errors import BundleError
    from service_chassis.errors import ServiceError
    from training.marginals import GatesCollapsed

    try:
        with refused_input():
            yield
    except (NotLoadable, BundleError) as error:
        output.error(str(error))
        raise typer.Exit(BAD_INPUT) from None
    except ServiceError as error:
        found = ", ".join(f"{name} {value}" for name, value in error.metadata.items())
        output.error(f"{error.message} ({found})" if found else error.message)
        raise typer.Exit(BAD_INPUT) from None
    except (GatesCollapsed, ArithmeticError) as error:
        output.error(str(error))
        raise typer.Exit(1) from None


def _print(outcome: Outcome | None, as_json: bool) -> None:
    if outcome is None:
        return
    stated: dict[str, Any] = {
        "experts": outcome.experts,
        "bundle": outcome.bundle,
        "accuracy": outcome.accuracy,
        "cases": outcome.cases,
        "temperature": outcome.head.temperature,
        "left_out": outcome.left_out,
    }
    if as_json:
        output.print_json(connection.plain(stated))
        return
    if outcome.accuracy:
        _print_accuracy(outcome.accuracy, outcome.cases)
    if outcome.left_out:
        output.console.print(
            f"left out {outcome.left_out} records: the bundle is measured on their screens"
        )
    for name, directory in outcome.experts.items():
        output.console.print(f"expert {name} in {directory}", markup=False)
    if outcome.bundle is not None:
        output.console.print(f"bundle in {outcome.bundle}", markup=False)
