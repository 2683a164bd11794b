"""`molora bench`. Knows its flags and how to print its table; `timing.py` knows the clock."""

from __future__ import annotations

import io
import os
import platform
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from clients.cli import evaluation, output
from clients.cli.connection import (
    TIMEOUT_S,
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
    connected,
)
from clients.cli.evaluation import STDOUT
from clients.cli.exits import refused_input
from clients.cli.services import asked_services, check_both
from clients.cli.timing import Ask, Timing, time_calls
from molora_client import Molora


def bench(
    records: LabelledRecords = None,
    images_root: ImagesRoot = None,
    calls: Annotated[int, typer.Option(min=1, help="Of each kind; experts in turn.")] = 32,
    callers: Annotated[int, typer.Option(min=2, help="At once, in the last row.")] = 4,
    router: RunningRouter = None,
    executor: RunningExecutor = None,
    timeout_s: TimeoutS = TIMEOUT_S,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    json_file: JsonFile = None,
) -> None:
    """Time routes and answers as an agent asks for them.

    Asks a running router and executor, or starts the miniature's. Each call sends a record's
    prompt, and its screen as a PNG with one other pixel, so that the executor has kept none of
    them. On a server that others use, it takes from them.
    """
    check_both(router, executor)
    tls = client_tls(tls_ca, tls_cert, tls_key)
    with refused_input():
        from training.evaluation.cases import HELD_OUT, read_cases

        evaluation.make_folders(json_file, None)
        cases = read_cases(records or HELD_OUT, images_root, calls)
    with (
        asked_services(router, executor) as both,
        connected(
            router=both.router,
            executor=both.executor,
            timeout_s=timeout_s,
            tls=tls,
            token_file=token_file,
            as_json=json_file == STDOUT,
        ) as client,
        output.progress("calls") as progress,
    ):
        stated = _stated(client)

        def asked() -> list[Ask]:
            return [(case.prompt, _new(case.screen)) for case in cases]

        found = time_calls(client, asked, callers, progress)
    if json_file is not None:
        evaluation.write_json(json_file, stated | {"rows": [asdict(row) for row in found]})
    if json_file != STDOUT:
        _show(found, stated)


def _new(screen: Path) -> bytes:
    """The screen as nobody has sent it: its last pixel has any colour."""
    from training.data.images import open_image

    image = open_image(screen).convert("RGB")
    image.putpixel((image.width - 1, image.height - 1), tuple(secrets.token_bytes(3)))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _stated(client: Molora) -> dict[str, Any]:
    """What was asked, and from where."""
    server, bundle = client.server_info(), client.router_info()
    return {
        "model": server.model,
        "device": f"{server.device}, {server.dtype}",
        "experts": [expert.name for expert in bundle.experts],
        "client": {"machine": platform.machine(), "cpus": os.cpu_count()},
    }


def _show(found: list[Timing], stated: dict[str, Any]) -> None:
    columns = ("call", "calls", "abstained", "median ms", "p95 ms", "calls / s")
    rows = [
        [row.call, row.calls, row.abstained,
         f"{row.median_ms:.1f}", f"{row.p95_ms:.1f}", f"{row.calls_per_s:.1f}"]
        for row in found
    ]  # fmt: skip
    output.table(None, columns, rows)
    experts = len(stated["experts"])
    output.console.print(f"{stated['device']}, {experts} experts", markup=False)
