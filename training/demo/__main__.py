"""`python -m training.demo`: two services, held-out screens, a table, a report, an exit code.

Knows the order of things; each thing has a module of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from molora_client import Molora, MoloraError
from training.demo import override as grpcurl
from training.demo.cases import Case, read_cases
from training.demo.override import GrpcurlFailed, Override
from training.demo.report import write_report
from training.demo.run import MAX_NEW_TOKENS, CaseResult, ask_expert, run_case
from training.demo.summary import Summary, summarise
from training.pages import answer_text
from training.server_process import ServerFailed
from training.services import started

SAMPLES = Path(__file__).resolve().parents[2] / "miniature" / "samples" / "held_out.jsonl"
OUT = Path("artifacts/demo")
CALL_TIMEOUT_S = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo.

    Args:
        argv: Flags; None for the process's own.

    Returns:
        0 if everything worked and every threshold is met, 1 if not, 2 for wrong usage.
    """
    arguments = _parser().parse_args(argv)
    # Without this a SIGTERM would leave the two servers behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(highlight=False)
    start = time.monotonic()
    try:
        cases = read_cases(arguments.samples, arguments.cases)
        with _services(console) as client:
            results = _run(console, client, cases)
            overridden, override_ok = _override(client, results[0])
            environment = _environment(client)
    except (ServerFailed, MoloraError, GrpcurlFailed, ValueError, OSError) as error:
        console.print(f"[bold red]demo failed:[/] {escape(str(error))}")
        return 1
    summary = summarise(
        results,
        override_ok=override_ok,
        seconds=time.monotonic() - start,
        environment=environment,
    )
    _show_cases(console, results)
    _show_summary(console, summary)
    arguments.out.mkdir(parents=True, exist_ok=True)
    content = json.dumps(summary.to_json(), indent=2) + "\n"
    (arguments.out / "summary.json").write_text(content, encoding="utf-8")
    write_report(arguments.out / "report.html", summary, results, overridden)
    console.print(f"report: {arguments.out / 'report.html'}")
    return 0 if summary.passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.demo", description="The whole path on held-out screens."
    )
    parser.add_argument("--samples", type=Path, default=SAMPLES, help="JSONL file of records")
    parser.add_argument("--cases", type=int, default=32, help="cases at most")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of summary and report")
    return parser


@contextlib.contextmanager
def _services(console: Console) -> Iterator[Molora]:
    """The miniature's services, and a client once both are SERVING."""
    with contextlib.ExitStack() as stack:
        with console.status("starting executor and router"):
            both = stack.enter_context(started())
        console.print(f"executor {both.executor}   router {both.router}   both SERVING")
        client = Molora(both.router, both.executor, timeout_s=CALL_TIMEOUT_S)
        yield stack.enter_context(client)
    for server in both.processes:
        if server.exit_code != 0:
            raise ServerFailed(f"{server.name} did not drain: exit code {server.exit_code}")


def _run(console: Console, client: Molora, cases: Sequence[Case]) -> list[CaseResult]:
    experts = [expert.name for expert in client.experts().experts]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        return [
            run_case(client, case, _other(experts, case.expert, at))
            for at, case in enumerate(bar.track(cases, description="held-out screens"))
        ]


def _other(experts: Sequence[str], own: str, turn: int) -> str:
    """A wrong expert; each of them has its turn."""
    others = [name for name in experts if name != own]
    return others[turn % len(others)]


def _override(client: Molora, result: CaseResult) -> tuple[Override, bool]:
    """Forces another expert on a routed screen by hand, and asks the SDK for the same."""
    case, expert = result.case, result.other
    routed = client.route(case.prompt, case.screen)
    typed = grpcurl.override(
        address=routed.executor,
        prompt=case.prompt,
        context_id=routed.context_id,
        expert=expert,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    through_sdk = ask_expert(client, case, routed, expert)
    active = {name: gate for name, gate in typed.applied.items() if gate > 0}
    return typed, typed.text == through_sdk.text and active == {expert: 1.0}


def _environment(client: Molora) -> dict[str, str]:
    server, router = client.server_info(), client.router_info()
    return {
        "model": server.model,
        "device": f"{server.device}, {server.dtype}",
        "experts": ", ".join(f"{e.name} {e.digest[:12]}" for e in server.experts),
        "expert set": server.expert_set,
        "feature spec": server.feature_spec.digest,
        "router bundle": router.router_version,
        "routing mode": f"{router.mode.value if router.mode else '?'} ({router.mode_reason})",
        "temperature": f"{router.temperature:.3f} ({router.temperature_reason})",
    }


def _show_cases(console: Console, results: Sequence[CaseResult]) -> None:
    table = Table("prompt", "gates", "reason", "answer", "", "ms", header_style="bold")
    table.columns[-1].justify = "right"
    for result in results:
        gates = ", ".join(f"{n} {g:.2f}" for n, g in result.routed.gates.items() if g >= 0.005)
        mark = "[green]right[/]" if result.prediction.right else "[red]wrong[/]"
        table.add_row(
            escape(result.case.prompt),
            escape(gates) if result.route_right else f"[red]{escape(gates)}[/]",
            result.routed.reason.value,
            escape(answer_text(result.prediction)),
            mark,
            f"{result.predict_ms:.0f}",
        )
    console.print(table)


def _show_summary(console: Console, summary: Summary) -> None:
    table = Table("", "value", "95 % interval", "must be", "", header_style="bold")
    for check in summary.checks:
        rate = summary.rates.get(check.name)
        interval = "{:.2f} to {:.2f}".format(*rate.interval) if rate else ""
        table.add_row(
            check.name,
            f"{check.value:.3f}" if rate else f"{check.value:.0f}",
            interval,
            f"{check.rule} {check.limit:.3g}",
            "[green]ok[/]" if check.passed else "[red]missed[/]",
        )
    console.print(table)
    console.print(
        f"median route {summary.median_route_ms:.0f} ms   "
        f"median predict {summary.median_predict_ms:.0f} ms   {summary.seconds:.0f} s in all"
    )


if __name__ == "__main__":
    sys.exit(main())
