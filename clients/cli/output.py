"""What the command prints: tables for people, one JSON object for machines. Knows no verb."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# A pipe has no width: what reads it should not get rows that were folded for a screen.
_PIPE_WIDTH = 200

console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
_errors = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON object on stdout, never wrapped or coloured."""
    print(json.dumps(value, ensure_ascii=False))


def error(message: str) -> None:
    """One line on stderr."""
    _errors.print(f"[bold red]molora:[/] {escape(message)}")


def error_json(value: Any) -> None:
    """One JSON object on stderr."""
    print(json.dumps(value, ensure_ascii=False), file=sys.stderr)


def table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout; numbers are aligned to the right."""
    shown = Table(*columns, title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(shown.columns):
        column.overflow = "fold"  # a cut-off name or digest cannot be copied
        if rows and isinstance(rows[0][index], (int, float)):
            column.justify = "right"
    for row in rows:
        shown.add_row(*(_cell(value) for value in row))
    console.print(shown)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while the body runs.

    Args:
        what: Names the work.

    Yields:
        Call it with (done, in all).
    """
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_errors, transient=True) as bar:
        task = bar.add_task(what, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield advance


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "" if value is None else escape(str(value))
