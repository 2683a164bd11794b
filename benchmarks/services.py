"""Latency and throughput of both services over loopback, on the embedded miniature.

    python benchmarks/services.py [--json FILE] [--calls N]

Each call is a held-out screen through the SDK, as an agent sends it. Knows no model's internals.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from molora_client import Molora
from training.demo.cases import Case, read_cases
from training.services import started

SAMPLES = Path(__file__).resolve().parents[1] / "miniature" / "samples" / "held_out.jsonl"
WARM_UP_CALLS = 3
CONCURRENCY = 4

Row = dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON.

    Args:
        argv: Flags; None for the process's own.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--calls", type=int, default=32, help="calls of each kind")
    arguments = parser.parse_args(argv)
    cases = read_cases(SAMPLES, arguments.calls)
    with started() as both, Molora(both.router, both.executor) as client:
        rows = measure(client, cases)
    show(rows)
    if arguments.json:
        machine = {"machine": platform.machine(), "cpus": os.cpu_count()}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({**machine, "rows": rows}, indent=2) + "\n")
    return 0


def measure(client: Molora, cases: Sequence[Case]) -> dict[str, Row]:
    """Every kind of call, one after the other, and Predict from several callers at once.

    Args:
        client: Of two services that are ready.
        cases: What to send; their screens are read before the clock starts.

    Returns:
        Kind of call to its milliseconds and calls per second.
    """
    asked = [(case.prompt, case.screen.read_bytes()) for case in cases]
    held = []
    for prompt, screen in asked:
        routed = client.route(prompt, screen)
        held.append(partial(client.generate, prompt, routed.context, gates=routed.gates))
    kinds: dict[str, list[Callable[[], object]]] = {
        "Route": [partial(client.route, *ask) for ask in asked],
        "Predict": [partial(client.predict, *ask) for ask in asked],
        "Generate, screen held": [*held],
    }
    rows = {name: sequential(name, calls) for name, calls in kinds.items()}
    rows[f"Predict, {CONCURRENCY} callers"] = concurrent(kinds["Predict"])
    return rows


def sequential(name: str, calls: Sequence[Callable[[], object]]) -> Row:
    """Time calls one by one, after a few that are not counted."""
    for call in calls[:WARM_UP_CALLS]:
        call()
    begun = time.perf_counter()
    times = [timed_ms(call) for call in track(calls, description=name)]
    return row(times, time.perf_counter() - begun)


def concurrent(calls: Sequence[Callable[[], object]]) -> Row:
    """Time calls that several callers send at once."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        times = list(pool.map(timed_ms, calls))
    return row(times, time.perf_counter() - begun)


def timed_ms(call: Callable[[], object]) -> float:
    """How long one call takes, in milliseconds."""
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1000


def row(times_ms: Sequence[float], total_s: float) -> Row:
    """Median and 95th percentile in milliseconds, and calls per second."""
    ordered = sorted(times_ms)
    return {
        "calls": len(ordered),
        "median_ms": statistics.median(ordered),
        "p95_ms": ordered[int(0.95 * (len(ordered) - 1))],
        "calls_per_s": len(ordered) / total_s,
    }


def show(rows: dict[str, Row]) -> None:
    """Print the table."""
    table = Table("call", "calls", "median ms", "p95 ms", "calls / s", header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, each in rows.items():
        values = (f"{value:.1f}" for key, value in each.items() if key != "calls")
        table.add_row(name, str(int(each["calls"])), *values)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
