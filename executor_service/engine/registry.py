"""Which experts are loaded now, which requests hold them, and how that changes.

Knows snapshots of experts and their identities; does not know prompts, screens or scheduling.

A snapshot never changes. A request holds the one it started with; a change puts another in its
place, and only once everything about the new one is known to be good.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from executor_service.core import ExpertIdentity, GateVector, RoutingChoice, resolve_gates
from executor_service.engine.failures import loading_expert
from executor_service.engine.work import Applied, ExpertState
from executor_service.errors import expert_set_changed, unknown_expert
from executor_service.model.experts import ExpertSet, LoadedExpert
from executor_service.model.gated import Routing
from service_chassis.errors import Aborted, AlreadyExists, InvalidArgument

Result = TypeVar("Result")
# Reads and verifies the adapter of a name in a directory, as the given generation. Blocks.
Load = Callable[[str, Path, int], LoadedExpert]
# Shows that the named expert of a set works in the model. Runs on the model's thread.
Probe = Callable[[ExpertSet, str], Awaitable[None]]


@dataclass(frozen=True)
class Held:
    """The experts and gates of one request, frozen for its life.

    Attributes:
        experts: Snapshot that was current when the request came.
        choice: What the caller asked for.
        gates: What runs: `choice` after mask and mode, in the snapshot's order.
    """

    experts: ExpertSet
    choice: RoutingChoice
    gates: GateVector

    @functools.cached_property
    def routing(self) -> Routing:
        """The model's form of it, for one row."""
        return Routing(self.experts, (self.gates,))

    @property
    def active(self) -> tuple[LoadedExpert, ...]:
        """Experts with a gate above 0 in any layer, in the snapshot's order."""
        return tuple(self.experts.experts[place] for place in self.gates.active)

    @property
    def changes_vision(self) -> bool:
        """Whether an expert with a gate above 0 adapts the vision tower."""
        pairs = zip(self.experts.experts, self.gates.weights, strict=True)
        return any(weight > 0 and expert.targets_vision for expert, weight in pairs)

    @property
    def system_prompt(self) -> str | None:
        """That of the expert with the highest gate (ties: the first); None if it has none."""
        if self.gates.is_zero:
            return None
        heaviest = max(self.gates.weights)
        return self.experts.experts[self.gates.weights.index(heaviest)].system_prompt

    def applied(self, *, system_prompt_digest: str, vision_reused: bool) -> Applied:
        """What the answer states about it."""
        return Applied(
            names=self.experts.names,
            gates=self.gates,
            active=tuple(expert.identity for expert in self.active),
            masked=self.choice.masked,
            mode=self.choice.mode,
            base_only=self.choice.base_only,
            expert_set=self.experts.digest,
            system_prompt_digest=system_prompt_digest,
            vision_reused=vision_reused,
        )


class ExpertRegistry:
    """The current snapshot and its changes. Methods belong to the event loop's thread.

    Args:
        experts: First snapshot.
        num_layers: Decoder layers of the model.
        load: Runs on a thread of its own, so that neither the loop nor the model waits for it.
        probe: Refuses an expert that does not work, before anybody can be given it.
    """

    def __init__(self, experts: ExpertSet, *, num_layers: int, load: Load, probe: Probe) -> None:
        self._experts = experts
        self._num_layers = num_layers
        self._load = load
        self._probe = probe
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="expert-loader")
        self._changing = asyncio.Lock()
        self._holders: Counter[ExpertIdentity] = Counter()
        self._released = asyncio.Event()
        # By name, and kept after an unload: a generation never comes back.
        self._generations = {one.name: one.generation for one in experts.identities}

    @property
    def current(self) -> ExpertSet:
        """The snapshot that the next request gets."""
        return self._experts

    def states(self) -> tuple[ExpertState, ...]:
        """The loaded experts, in expert-set order."""
        return tuple(self._state(expert) for expert in self._experts.experts)

    @contextlib.contextmanager
    def hold(self, choice: RoutingChoice, expert_set: str | None) -> Iterator[Held]:
        """Resolve a caller's choice against the current snapshot, and keep it while inside.

        Args:
            choice: Gates, expert or base_only, with mode and mask.
            expert_set: Digest the caller routed against, if it says so.

        Raises:
            Aborted: Other experts are loaded (reason EXPERT_SET_CHANGED).
            InvalidArgument: The choice is not a valid one.
            NotFound: It names an expert that is not loaded.
        """
        experts = self._experts
        if expert_set is not None and expert_set != experts.digest:
            raise expert_set_changed(experts.digest)
        held = Held(experts, choice, resolve_gates(choice, experts.names, self._num_layers))
        identities = [expert.identity for expert in held.active]
        self._holders.update(identities)
        try:
            yield held
        finally:
            self._holders.subtract(identities)
            self._holders += Counter()  # Drops what nobody holds.
            self._released.set()

    async def load(self, name: str, path: Path) -> ExpertState:
        """Add an expert; loading what is loaded already under this name changes nothing.

        Raises:
            AlreadyExists: The name has other content, or the content another name.
            ServiceError: The adapter is refused. Nothing has changed.
        """
        async with self._changing:
            expert = await self._read(name, path)
            loaded = self._find(name)
            if loaded is None:
                return await self._put(expert)
            if loaded.identity.digest == expert.identity.digest:
                return self._state(loaded)
            raise AlreadyExists(
                "EXPERT_EXISTS",
                "This name is loaded with other content; use ReloadExpert.",
                expert=name,
                generation=loaded.identity.generation,
            )

    async def reload(self, name: str, path: Path | None, expected_generation: int) -> ExpertState:
        """Replace an expert; requests that hold the old one finish on it.

        Args:
            name: A loaded expert.
            path: Where its new content is; None reads where it came from.
            expected_generation: The generation to replace.

        Raises:
            NotFound: The expert is not loaded.
            Aborted: It has another generation by now.
            AlreadyExists: The new content is loaded under another name.
            ServiceError: The adapter is refused. Nothing has changed.
        """
        async with self._changing:
            loaded = self._require(name, expected_generation)
            expert = await self._read(name, path or loaded.source)
            return await self._put(expert)

    async def unload(self, name: str, expected_generation: int | None) -> ExpertState:
        """Remove an expert: new requests do not find it, and this returns when none holds it.

        If the caller gives up before that, the expert is back.

        Raises:
            NotFound: The expert is not loaded.
            Aborted: It has another generation by now.
        """
        async with self._changing:
            loaded = self._require(name, expected_generation)
            before = self._experts
            self._experts = await self._apart(lambda: before.without(name))
            try:
                await self._drained(name)
            except BaseException:
                self._experts = before
                raise
            return self._state(loaded)

    def close(self) -> None:
        """Stop the loader's thread after its current work."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _read(self, name: str, path: Path) -> LoadedExpert:
        generation = self._generations.get(name, 0) + 1
        return await self._apart(lambda: self._load(name, path, generation))

    async def _put(self, expert: LoadedExpert) -> ExpertState:
        """Make a set with a read expert current, in the place of one with its name."""
        experts = await self._apart(lambda: self._experts.with_expert(expert))
        with loading_expert():
            await self._probe(experts, expert.identity.name)
        self._experts = experts
        self._generations[expert.identity.name] = expert.identity.generation
        return self._state(expert)

    async def _apart(self, function: Callable[[], Result]) -> Result:
        with loading_expert():
            return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def _drained(self, name: str) -> None:
        while any(identity.name == name for identity in self._holders):
            self._released.clear()
            await self._released.wait()

    def _require(self, name: str, generation: int | None) -> LoadedExpert:
        loaded = self._find(name)
        if loaded is None:
            raise unknown_expert(name)
        if generation == 0:
            raise InvalidArgument(
                "NO_GENERATION",
                "Generations count from 1; ListExperts tells the current one.",
                field="expected_generation",
            )
        if generation is not None and generation != loaded.identity.generation:
            raise Aborted(
                "GENERATION_CHANGED",
                "The expert has been replaced meanwhile; list the experts and decide again.",
                expert=name,
                generation=loaded.identity.generation,
            )
        return loaded

    def _find(self, name: str) -> LoadedExpert | None:
        found = [expert for expert in self._experts.experts if expert.identity.name == name]
        return found[0] if found else None

    def _state(self, expert: LoadedExpert) -> ExpertState:
        return ExpertState(
            identity=expert.identity,
            label=expert.label,
            rank=expert.rank,
            matched_modules=expert.matched_modules,
            targets_vision=expert.targets_vision,
            in_use=self._holders[expert.identity],
            task_types=tuple(expert.task_types),
        )
