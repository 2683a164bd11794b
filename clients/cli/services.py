"""The two services that a verb measures: running ones, or the miniature's for a while.

Knows how they are named and started; asks them nothing.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from clients.cli import output

if TYPE_CHECKING:
    from training.services import Services


def check_both(router: str | None, executor: str | None) -> None:
    """Refuses one address without the other.

    Raises:
        typer.BadParameter: One is missing.
    """
    if (router is None) != (executor is None):
        raise typer.BadParameter(
            "--router and --executor go together; without both, the miniature is started"
        )


@contextlib.contextmanager
def asked_services(
    router: str | None, executor: str | None, bundle: Path | None = None
) -> Iterator[Services]:
    """Those at the addresses; where there are none, the miniature's while the body runs.

    Args:
        router: Address, with `executor` or not at all.
        executor: Address.
        bundle: Of the router that is started; None for the miniature's.

    Yields:
        Both; those that were started are SERVING.

    Raises:
        typer.Exit: 1, after one line, if they did not start.
    """
    from training.server_process import ServerFailed
    from training.services import Services, started

    if router is not None and executor is not None:
        yield Services(router, executor)
        return
    # Without this a SIGTERM would leave the two servers behind.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with started(bundle) as addresses:
            yield addresses
    except ServerFailed as error:
        output.error(str(error))
        raise typer.Exit(1) from None
    finally:
        signal.signal(signal.SIGTERM, before)
