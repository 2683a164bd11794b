"""Both services as processes, over a real (untrained) base with real PEFT experts."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from molora_client import AsyncMolora
from router_service.core import ExpertEntry, FeatureSpec
from tests.support import router_bundle
from tests.support.checkpoints import untrained_checkpoint
from tests.support.experts import write_expert
from tests.support.processes import Running, running


@dataclass(frozen=True)
class Services:
    """Both, and what they serve.

    Attributes:
        executor: Serves `calendar` and `claim-window`.
        router: In front of it; its head is one matrix and knows nothing.
        base: The executor's checkpoint.
        experts_root: Also holds `incoming/chart-screen`, an adapter that is not loaded.
        bundle: The router's.
    """

    executor: Running
    router: Running
    base: Path
    experts_root: Path
    bundle: Path


@contextlib.contextmanager
def services(folder: Path, *router_flags: str) -> Iterator[Services]:
    """Start both; stopped at the end.

    Args:
        folder: Gets experts, bundle and logs.
        router_flags: More of them.
    """
    base, root = untrained_checkpoint(), folder / "experts"
    write_expert(base, root / "calendar", rank=8, seed=1, label=0)
    write_expert(base, root / "claim-window", rank=16, seed=2, label=1, vision=False)
    write_expert(base, root / "incoming/chart-screen", rank=4, seed=3, vision=False)
    flags = ("--model", str(base), "--experts-root", str(root))
    with running("executor_service", *flags, log_file=folder / "executor.log") as executor:
        bundle = asyncio.run(bundle_for(executor.address, folder / "router"))
        flags = ("--bundle", str(bundle), "--executor", executor.address, *router_flags)
        with running("router_service", *flags, log_file=folder / "router.log") as router:
            yield Services(executor, router, base, root, bundle)


async def bundle_for(executor: str, directory: Path) -> Path:
    """Write a bundle for the experts and the features of a running executor.

    Args:
        executor: Its address.
        directory: Gets the bundle.

    Returns:
        `directory`.
    """
    async with AsyncMolora(executor=executor) as client:
        info, listed = await client.server_info(), await client.experts()
    fields = dataclasses.asdict(info.feature_spec)
    digest = fields.pop("digest")
    spec = FeatureSpec(**fields)
    assert spec.digest == digest, "both services work out the same digest"
    head = router_bundle.head_model(
        len(listed.experts), text_dim=spec.text_dim, vision_dim=spec.vision_dim
    )
    model = head.SerializeToString()
    entries = [ExpertEntry(one.name, one.digest, one.label or 0) for one in listed.experts]
    stated = dataclasses.replace(
        router_bundle.manifest(model, tuple(entries)),
        feature_spec=spec,
        feature_spec_digest=spec.digest,
    )
    return router_bundle.write_bundle(directory, model, router_bundle.as_json(stated))
