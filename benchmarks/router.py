"""How fast the router judges, beside the same handler when it does not, and how large it is.

    python benchmarks/router.py [--json FILE] [--rounds N] [--seconds S]

An executor answers ExtractFeatures with ready features at once. `route_vs_empty_rpc` is the rate of
Route over that of the same handler when it returns a constant after that call: what is left is
reading the features, the head, the policy, the metrics and the answer. Both are measured in turn,
with the embedded bundle and with features of an 8B model's size. Knows no model.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import torch
from rich.console import Console
from rich.table import Table

from molora.v1 import executor_pb2, router_pb2, types_pb2
from router_service import server, servicer, wire
from router_service.bundle import HEAD_FILE, Bundle, load_bundle
from router_service.core import ExpertEntry
from router_service.manifest import Manifest
from router_service.settings import EMBEDDED_BUNDLE, RouterSettings
from service_chassis.settings import parse_settings
from training.demo.cases import read_cases
from training.export import Judge, to_onnx, write_manifest
from training.heads import RouterHead
from training.known_screens import KnownScreens, read_known_screens

SAMPLES = Path(__file__).resolve().parents[1] / "miniature" / "samples" / "held_out.jsonl"
CALLERS = 16
WARM_UP_S = 0.5
START_S = 60.0
FREE = ("--host", "127.0.0.1", "--port", "0", "--metrics-port", "0")
# An 8B model's hidden size, and the experts that its user has.
LARGE_DIM, LARGE_EXPERTS, LARGE_WIDTH = 4096, 7, 128
_ROUTE = "/molora.v1.RouterService/Route"
_EXECUTOR = "molora.v1.ExecutorService"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON.

    Args:
        argv: Flags; None for the process's own.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--rounds", type=int, default=7, help="of both handlers in turn")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each handler in a round")
    # What this script starts itself as: `executor BUNDLE`, or `constant FLAGS…`.
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        return run_child(*arguments.child)
    with tempfile.TemporaryDirectory() as folder:
        bundles = {"embedded": EMBEDDED_BUNDLE, "8B size": large_bundle(Path(folder))}
        rows = {
            name: measure(bundle, arguments.rounds, arguments.seconds)
            for name, bundle in bundles.items()
        }
    show(rows)
    if arguments.json:
        small = rows["embedded"]
        stated = {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "route_vs_empty_rpc": small["route_vs_empty_rpc"],
            "router_rss_mb": max(row["router_rss_mb"] for row in rows.values()),
            "rows": rows,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(stated, indent=2) + "\n")
    return 0


def measure(bundle: Path, rounds: int, seconds: float) -> dict[str, float]:
    """Rates of both handlers, measured in turn, and the judging router's memory.

    Args:
        bundle: Folder of the router bundle.
        rounds: Of both.
        seconds: Of each in a round.

    Returns:
        Medians over the rounds; the ratio is that of each round.
    """
    script = [sys.executable, __file__, "--child"]
    with started([*script, "executor", str(bundle)]) as executor:
        flags = [*FREE, "--bundle", str(bundle), "--executor", executor.address]
        flags += ["--log-level", "warning"]
        with (
            started([sys.executable, "-m", "router_service", *flags]) as router,
            started([*script, "constant", *flags]) as constant,
        ):
            judging, empty = [], []
            for _ in range(rounds):
                judging.append(rate(router.address, seconds))
                empty.append(rate(constant.address, seconds))
            resident_mb = router.resident_bytes() / 1e6
    return {
        "route_per_s": statistics.median(judging),
        "empty_per_s": statistics.median(empty),
        "route_vs_empty_rpc": statistics.median(a / b for a, b in zip(judging, empty, strict=True)),
        "router_rss_mb": resident_mb,
    }


def rate(address: str, seconds: float) -> float:
    """Route calls per second that some callers at once get answered."""
    case = read_cases(SAMPLES, 1)[0]
    request = router_pb2.RouteRequest(
        prompt=types_pb2.Prompt(text=case.prompt),
        screen=types_pb2.Screen(data=case.screen.read_bytes()),
    ).SerializeToString()

    async def caller(channel: grpc.aio.Channel, until: float) -> int:
        # Bytes in, bytes out: the measuring process must not be what is measured.
        call: Any = channel.unary_unary(_ROUTE)
        answered = 0
        while time.perf_counter() < until:
            await call(request)
            answered += 1
        return answered

    async def callers() -> float:
        async with grpc.aio.insecure_channel(address) as channel:
            for duration in (WARM_UP_S, seconds):
                begun = time.perf_counter()
                calls = (caller(channel, begun + duration) for _ in range(CALLERS))
                answered = sum(await asyncio.gather(*calls))
            return answered / (time.perf_counter() - begun)

    return asyncio.run(callers())


@dataclasses.dataclass(frozen=True)
class Started:
    """A process that serves."""

    address: str
    metrics_address: str

    def resident_bytes(self) -> float:
        """Its resident memory, as it states it itself."""
        url = f"http://{self.metrics_address}/metrics"
        with urllib.request.urlopen(url) as reply:
            text = reply.read().decode()
        found = re.search(r"^process_resident_memory_bytes (\S+)$", text, re.MULTILINE)
        if found is None:
            raise RuntimeError("the router states no process_resident_memory_bytes: run on Linux")
        return float(found[1])


@contextlib.contextmanager
def started(command: Sequence[str]) -> Iterator[Started]:
    """Run a server until the block ends; entered once Route or ExtractFeatures can be called."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        addresses = [process.stdout.readline().rpartition(" ")[2].strip() for _ in range(2)]
        if not all(addresses):
            raise RuntimeError(f"{' '.join(command)} did not start; what it said is above")
        if "executor" not in command:
            wait_until_serving(addresses[0])
        yield Started(*addresses)
    finally:
        process.terminate()
        process.communicate()


def wait_until_serving(address: str) -> None:
    """Return once the router's handshake is over."""
    with grpc.insecure_channel(address) as channel:
        info = channel.unary_unary(
            "/molora.v1.RouterService/GetRouterInfo",
            router_pb2.GetRouterInfoRequest.SerializeToString,
            router_pb2.GetRouterInfoResponse.FromString,
        )
        end = time.monotonic() + START_S
        while not info(router_pb2.GetRouterInfoRequest(), timeout=START_S).serving:
            if time.monotonic() > end:
                raise RuntimeError("the router never said that it serves")
            time.sleep(0.05)


def large_bundle(folder: Path) -> Path:
    """A bundle of an 8B model's sizes, with random weights."""
    noise = torch.Generator().manual_seed(0)
    shape = (LARGE_EXPERTS, LARGE_DIM)
    head = RouterHead(LARGE_DIM, LARGE_DIM, LARGE_EXPERTS, LARGE_WIDTH, 0.0).eval()
    known = KnownScreens(torch.randn(shape, generator=noise), torch.ones(shape))
    model = to_onnx(Judge(head, known))
    (folder / HEAD_FILE).write_bytes(model)
    embedded = load_bundle(EMBEDDED_BUNDLE).manifest
    spec = dataclasses.replace(embedded.feature_spec, text_dim=LARGE_DIM, vision_dim=LARGE_DIM)
    manifest = dataclasses.replace(
        embedded,
        head_sha256=hashlib.sha256(model).hexdigest(),
        experts=tuple(ExpertEntry(f"expert-{n}", f"{n:064x}") for n in range(LARGE_EXPERTS)),
        feature_spec=spec,
        feature_spec_digest=spec.digest,
    )
    write_manifest(manifest, folder)
    return folder


def run_child(kind: str, *flags: str) -> int:
    """What `started` runs of this script."""
    if kind == "executor":
        asyncio.run(serve_ready_features(load_bundle(Path(*flags))))
        return 0
    # The call is made and its answer dropped: not even the features are read.
    setattr(wire, "read_features", lambda reply: reply)  # noqa: B010 (mypy would refuse it)
    setattr(server, "RouterServicer", ConstantServicer)  # noqa: B010
    settings = parse_settings(RouterSettings, list(flags), "constant")
    return asyncio.run(server.run(settings))


class ConstantServicer(servicer.RouterServicer):
    """The handler up to and with its call to the executor, and then a constant."""

    async def Route(
        self, request: router_pb2.RouteRequest, context: servicer.Context
    ) -> router_pb2.RouteResponse:
        """Check what Route checks, make its call, and answer what it might."""
        router = self._router
        router.handshake.require()
        wire.check_question(request)
        read = wire.read_hint(request), wire.read_options(request)
        router.policy.check(*read)
        with router.handshake.watching():
            await router.executor.features(
                request.prompt, request.screen, servicer._request_id(), context.time_remaining()
            )
        return _CONSTANT


_CONSTANT = router_pb2.RouteResponse(
    decision=types_pb2.Decision(
        gates=types_pb2.Gates(weights={"calendar": 1.0}),
        probabilities={"calendar": 0.99, "claim-window": 0.01},
        reason=types_pb2.DECISION_REASON_ROUTER,
        confidence=0.99,
        expert_set="0" * 64,
        router_version="0" * 64,
    ),
    context_id="0" * 32,
    executor="127.0.0.1:50052",
)


async def serve_ready_features(bundle: Bundle) -> None:
    """Serve ExtractFeatures and GetServerInfo from ready bytes, until the process is ended."""
    answers = {
        "GetServerInfo": server_info(bundle.manifest).SerializeToString(),
        "ExtractFeatures": ready_features(bundle).SerializeToString(),
    }

    def handler(answer: bytes) -> Any:
        async def behave(request: bytes, context: Any) -> bytes:
            return answer

        return grpc.unary_unary_rpc_method_handler(behave)

    handlers = {name: handler(answer) for name, answer in answers.items()}
    executor = grpc.aio.server()
    executor.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_EXECUTOR, handlers),))
    address = f"127.0.0.1:{executor.add_insecure_port('127.0.0.1:0')}"
    await executor.start()
    print(f"executor listening on {address}\nexecutor without metrics", flush=True)
    await executor.wait_for_termination()


def server_info(manifest: Manifest) -> executor_pb2.GetServerInfoResponse:
    """An executor that the bundle was made for."""
    return executor_pb2.GetServerInfoResponse(
        model=manifest.feature_spec.base_digest,
        feature_spec=executor_pb2.FeatureSpec(digest=manifest.feature_spec_digest),
        expert_set="0" * 64,
        experts=[
            types_pb2.ExpertIdentity(name=expert.name, digest=expert.digest, generation=1)
            for expert in manifest.experts
        ],
    )


def ready_features(bundle: Bundle) -> executor_pb2.ExtractFeaturesResponse:
    """Features of the bundle's sizes, of a screen that its first expert knows."""
    manifest, known = bundle.manifest, read_known_screens(bundle.head)
    if known is None:
        raise RuntimeError("the bundle remembers no screens: export it again with this version")
    spec, noise = manifest.feature_spec, torch.Generator().manual_seed(1)
    return executor_pb2.ExtractFeaturesResponse(
        context_id="0" * 32,
        text_features=torch.randn(spec.text_dim, generator=noise).tolist(),
        # Far from all known screens, the router would abstain.
        vision_features=known.mean[0].tolist(),
        feature_spec=manifest.feature_spec_digest,
        model=spec.base_digest,
        expert_set="0" * 64,
    )


def show(rows: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    columns = ("Route / s", "empty / s", "ratio", "router MB")
    table = Table("bundle", *columns, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['route_per_s']:.0f}",
            f"{row['empty_per_s']:.0f}",
            f"{row['route_vs_empty_rpc']:.3f}",
            f"{row['router_rss_mb']:.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
