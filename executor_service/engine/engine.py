"""The engine's door: one method per request kind, and what is loaded.

Knows how a request passes through context cache, registry, queue and worker; knows no protobuf.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import structlog

from executor_service.engine.contexts import ContextCache
from executor_service.engine.inputs import Context, Tools
from executor_service.engine.jobs import FeaturesJob, RequestJob
from executor_service.engine.locations import check_name, resolve_adapter
from executor_service.engine.metrics import Cache
from executor_service.engine.registry import ExpertRegistry, Held
from executor_service.engine.scheduler import Scheduler, Ticket
from executor_service.engine.sequences import GenerateJob, ScoreJob
from executor_service.engine.work import (
    Completed,
    ExpertState,
    Extracted,
    Facts,
    FeaturesAsk,
    GenerateAsk,
    ScoreAsk,
    Scored,
    ScreenSource,
    TextDelta,
)
from executor_service.engine.worker import Job, Worker

Result = TypeVar("Result")
_log = structlog.get_logger()


class Engine:
    """Runs requests. All methods belong to the event loop's thread.

    Timeouts are seconds from now; None waits as long as it takes.

    Args:
        facts: What is told about it.
        tools: Shared by all requests.
        registry: The experts.
        contexts: The held screens.
        scheduler: Of `worker`.
        worker: The model's thread.
        experts_root: Where experts may be loaded from while it runs.
    """

    def __init__(
        self,
        *,
        facts: Facts,
        tools: Tools,
        registry: ExpertRegistry,
        contexts: ContextCache[Context],
        scheduler: Scheduler[Job],
        worker: Worker,
        experts_root: Path | None,
    ) -> None:
        self.facts = facts
        self._tools = tools
        self._registry = registry
        self._contexts = contexts
        self._scheduler = scheduler
        self._worker = worker
        self._experts_root = experts_root
        self._metrics = tools.metrics
        self._metrics.loaded(registry.current.names)
        # One thread: decoding is bounded in memory, and never beside itself.
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="screen-reader")

    @property
    def expert_set(self) -> str:
        """Digest of the loaded experts."""
        return self._registry.current.digest

    def experts(self) -> tuple[ExpertState, ...]:
        """The loaded experts, in expert-set order."""
        return self._registry.states()

    async def extract(self, ask: FeaturesAsk, timeout_s: float | None) -> Extracted:
        """Features of a prompt and screen; holds the screen under a context id.

        Raises:
            ServiceError: The request is refused or fails.
        """
        job = FeaturesJob(self._tools, ask, self._context(ask.screen), self.facts.spec)
        async with self._admitted(job, timeout_s) as ticket:
            content = await self._apart(lambda: self._content(ask.screen.data))
            if ask.screen.data:
                held = self._contexts.find(content)
                self._metrics.looked_up(Cache.SCREEN, hit=held is not None)
                if held is not None:
                    job.hold(held)
            await self._start(job, ticket)
            result = await job.outbox.get()
        return Extracted(
            context_id=ask.screen.context_id or self._keep(content, result.context),
            text=result.text,
            vision=result.vision,
            feature_spec=self.facts.spec.digest,
            model=self.facts.model,
            expert_set=self.expert_set,
            timings=result.timings,
        )

    async def generate(
        self, ask: GenerateAsk, timeout_s: float | None
    ) -> AsyncGenerator[TextDelta | Completed, None]:
        """An answer as it comes; closing the generator cancels the request.

        Yields:
            Deltas, then one `Completed`.

        Raises:
            ServiceError: The request is refused or fails; `Completed` does not come then.
        """
        with self._registry.hold(ask.choice, ask.expert_set) as held:
            job = GenerateJob(self._tools, ask, held, self._context(ask.screen))
            async with self._admitted(job, timeout_s) as ticket:
                self._count(held)
                await self._start(job, ticket)
                event: TextDelta | Completed | None = None
                while not isinstance(event, Completed):
                    event = await job.outbox.get()
                    yield event

    async def score(self, ask: ScoreAsk, timeout_s: float | None) -> Scored:
        """Log-probabilities of a given answer.

        Raises:
            ServiceError: The request is refused or fails.
        """
        with self._registry.hold(ask.choice, ask.expert_set) as held:
            job = ScoreJob(self._tools, ask, held, self._context(ask.screen))
            async with self._admitted(job, timeout_s) as ticket:
                self._count(held)
                await self._start(job, ticket)
                return await job.outbox.get()

    async def load_expert(self, name: str, path: str) -> ExpertState:
        """Load an adapter from below the root of experts.

        Raises:
            ServiceError: It is refused; nothing has changed.
        """
        check_name(name)
        state = await self._registry.load(name, resolve_adapter(self._experts_root, path))
        return self._changed("load", state)

    async def unload_expert(self, name: str, expected_generation: int | None) -> ExpertState:
        """Remove an expert once no request holds it.

        Raises:
            ServiceError: It is refused; nothing has changed.
        """
        self._check_known(name)
        return self._changed("unload", await self._registry.unload(name, expected_generation))

    async def reload_expert(self, name: str, path: str, expected_generation: int) -> ExpertState:
        """Replace an expert; an empty path reads where it came from.

        Raises:
            ServiceError: It is refused; nothing has changed.
        """
        self._check_known(name)
        directory = resolve_adapter(self._experts_root, path) if path else None
        state = await self._registry.reload(name, directory, expected_generation)
        return self._changed("reload", state)

    async def ended(self) -> None:
        """Return when the model's thread has ended; every request has an answer by then."""
        await self._worker.ended()

    async def close(self) -> None:
        """Stop all threads; whoever waits gets UNAVAILABLE."""
        await self._worker.stop()
        self._registry.close()
        self._reader.shutdown(wait=False, cancel_futures=True)

    @contextlib.asynccontextmanager
    async def _admitted(
        self, job: RequestJob[Any], timeout_s: float | None
    ) -> AsyncIterator[Ticket[Job]]:
        """Hold a place for a job while inside; leaving early cancels it."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        ticket = self._scheduler.admit(job, job.lane, deadline_s=deadline_s)
        try:
            yield ticket
        finally:
            self._scheduler.cancel(ticket)

    async def _start(self, job: RequestJob[Any], ticket: Ticket[Job]) -> None:
        """Make a job's input ready and let it run."""
        await self._apart(job.prepare)
        self._scheduler.ready(ticket)

    async def _apart(self, function: Callable[[], Result]) -> Result:
        """Run a function on the reader thread."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, function)

    def _changed(self, act: str, state: ExpertState) -> ExpertState:
        """Leave a record of an administrator's act; the line of the call says whose it was."""
        identity = state.identity
        _log.info(
            "experts changed",
            act=act,
            expert=identity.name,
            digest=identity.digest,
            generation=identity.generation,
            expert_set=self.expert_set,
        )
        self._metrics.loaded(self._registry.current.names)
        return state

    def _check_known(self, name: str) -> None:
        """A loaded name is good, whatever the rule for new ones says."""
        if name not in self._registry.current.names:
            check_name(name)

    def _count(self, held: Held) -> None:
        self._metrics.routed(held.choice, held.experts.names, held.gates)

    def _context(self, screen: ScreenSource) -> Context | None:
        if not screen.context_id:
            return None
        hit = False
        try:
            context = self._contexts.get(screen.context_id)
            hit = True
        finally:
            self._metrics.looked_up(Cache.CONTEXT, hit=hit)
        return context

    def _content(self, data: bytes) -> bytes:
        """What a screen is held under: all that decides what the tower makes of it."""
        return hashlib.sha256(self.facts.model.encode() + data).digest()

    def _keep(self, content: bytes, context: Context) -> str:
        context_id = self._contexts.put(content, context)
        # A held screen must go even if no other request comes; a second later it surely expired.
        delay_s = self.facts.limits.context_ttl_seconds + 1
        asyncio.get_running_loop().call_later(delay_s, self._contexts.sweep)
        return context_id
