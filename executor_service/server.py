"""Puts an executor together from its settings and keeps it running.

Knows the order of starting and stopping; knows no rule of any room.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grpc
import torch

from executor_service.engine.contexts import ContextCache
from executor_service.engine.detokenizer import TokenBytes
from executor_service.engine.engine import Engine
from executor_service.engine.inputs import Tools
from executor_service.engine.registry import ExpertRegistry
from executor_service.engine.scheduler import Scheduler
from executor_service.engine.work import Facts, Limits
from executor_service.engine.worker import Job, Worker
from executor_service.errors import NotLoadable, still_loading
from executor_service.model.experts import (
    ExpertLocation,
    ExpertSet,
    LoadedExpert,
    discover_experts,
)
from executor_service.model.gated import GatedModel
from executor_service.model.loading import load_expert, probe_expert, read_expert
from executor_service.model.prompt import PromptBuilder
from executor_service.model.screen import ScreenLimits, ScreenReader
from executor_service.servicer import (
    AUTH_TABLE,
    EXECUTOR,
    EXPERT_ADMIN,
    ExecutorServicer,
    ExpertAdminServicer,
)
from executor_service.settings import ExecutorSettings, lora_environment
from molora.v1 import admin_pb2_grpc, executor_pb2_grpc
from service_chassis.errors import ServiceError
from service_chassis.health import Health
from service_chassis.metrics import ServerMetrics
from service_chassis.server import StartupError, serve

NAME = "executor"
SERVICES = (EXECUTOR, EXPERT_ADMIN)


class ExecutorProcess:
    """The engine's place: empty while the model is loaded, then the engine.

    Args:
        settings: Checked settings.
    """

    def __init__(self, settings: ExecutorSettings) -> None:
        self._settings = settings
        self._engine: Engine | None = None

    def engine(self) -> Engine:
        """The engine.

        Raises:
            Unavailable: The model is still being loaded.
        """
        if self._engine is None:
            raise still_loading()
        return self._engine

    def register(self, server: grpc.aio.Server) -> None:
        """Add both services to a server."""
        executor_pb2_grpc.add_ExecutorServiceServicer_to_server(
            ExecutorServicer(self.engine), server
        )
        admin_pb2_grpc.add_ExpertAdminServiceServicer_to_server(
            ExpertAdminServicer(self.engine), server
        )

    async def ready(self, health: Health) -> None:
        """Load everything, turn health on, and watch the model's thread.

        Raises:
            StartupError: The model or an expert cannot be loaded.
            RuntimeError: The model's thread has ended.
        """
        try:
            self._engine = await build_engine(self._settings)
        except NotLoadable as error:
            raise StartupError(str(error), exit_code=3) from error
        health.set_serving(True)
        await self._engine.ended()
        # The supervisor's restart is the only honest recovery.
        health.set_serving(False)
        raise RuntimeError("the model's thread has ended")

    async def close(self) -> None:
        """Stop the engine, if there is one."""
        if self._engine is not None:
            await self._engine.close()


async def run(settings: ExecutorSettings) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: Checked settings.

    Returns:
        The exit code.
    """
    if not (settings.model / "config.json").is_file():
        print(f"{NAME}: {_no_checkpoint(settings.model)}", file=sys.stderr, flush=True)
        return 3
    process = ExecutorProcess(settings)
    try:
        return await serve(
            settings=settings,
            name=NAME,
            register=process.register,
            services=SERVICES,
            auth_table=AUTH_TABLE,
            metrics=ServerMetrics(),
            ready=process.ready,
        )
    finally:
        await process.close()


async def build_engine(settings: ExecutorSettings) -> Engine:
    """Load the base and its experts on the worker's thread.

    Args:
        settings: Checked settings.

    Returns:
        An engine whose experts have all been probed.

    Raises:
        NotLoadable: The model or an expert cannot be used; the text is for the operator.
    """
    scheduler: Scheduler[Job] = Scheduler(queue_length=settings.queue_length, slots=settings.slots)
    worker = Worker(scheduler)
    try:
        model = await worker.call(lambda: _load_model(settings))
        registry = await _load_experts(settings, model, worker)
        return _assemble(settings, model, registry, scheduler, worker)
    except BaseException:
        await worker.stop()
        raise


def _no_checkpoint(model: Path) -> str:
    return f"{model} holds no config.json; name a checkpoint directory with --model"


def _load_model(settings: ExecutorSettings) -> GatedModel:
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = settings.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    return GatedModel.load(settings.model, device=device, dtype=getattr(torch, dtype))


async def _load_experts(
    settings: ExecutorSettings, model: GatedModel, worker: Worker
) -> ExpertRegistry:
    """Every expert that the settings name, probed one by one, then all as one set."""
    try:
        locations = discover_experts(
            settings.effective_experts_root, settings.lora_modules, lora_environment()
        )
    except ServiceError as error:
        raise NotLoadable(error.message) from error
    loaded: list[LoadedExpert] = []
    for location in locations:
        try:
            loaded.append(await worker.call(lambda at=location: load_expert(model, at)))
        except ServiceError as error:
            raise NotLoadable(f"expert {location.name}: {error.message}") from error
    try:
        experts = model.expert_set(loaded)
    except ServiceError as error:
        raise NotLoadable(error.message) from error

    def load(name: str, path: Path, generation: int) -> LoadedExpert:
        return read_expert(model, ExpertLocation(name, path), generation)

    async def probe(candidates: ExpertSet, name: str) -> None:
        await worker.call(lambda: probe_expert(model, candidates, name))

    return ExpertRegistry(experts, num_layers=model.num_layers, load=load, probe=probe)


def _assemble(
    settings: ExecutorSettings,
    model: GatedModel,
    registry: ExpertRegistry,
    scheduler: Scheduler[Job],
    worker: Worker,
) -> Engine:
    context_tokens = int(model.config.text_config.max_position_embeddings)
    screens = ScreenLimits(
        max_bytes=settings.max_screen_bytes, max_pixels=settings.max_screen_pixels
    )
    tools = Tools(
        model=model,
        reader=ScreenReader(settings.model, screens),
        prompts=PromptBuilder(model.tokenizer),
        vocabulary=TokenBytes(model.tokenizer.backend_tokenizer),
        system_prompt=settings.system_prompt,
        max_prompt_tokens=min(settings.max_prompt_tokens, context_tokens),
        context_tokens=context_tokens,
    )
    contexts = ContextCache(max_bytes=settings.context_bytes, ttl_s=settings.context_ttl_s)
    return Engine(
        facts=_facts(settings, model, tools),
        tools=tools,
        registry=registry,
        contexts=contexts,
        scheduler=scheduler,
        worker=worker,
        experts_root=settings.effective_experts_root,
    )


def _facts(settings: ExecutorSettings, model: GatedModel, tools: Tools) -> Facts:
    try:
        spec = model.feature_spec(
            text_layer=settings.feature_layer,
            text_pooling=settings.text_pooling,
            vision_source=settings.vision_source,
        )
    except ValueError as error:
        raise NotLoadable(str(error)) from error
    return Facts(
        model=model.base_digest,
        spec=spec,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        backends={"attention": "sdpa", "gated": "stacked", "decode": "eager"},
        limits=Limits(
            max_prompt_tokens=tools.max_prompt_tokens,
            max_new_tokens=settings.max_new_tokens,
            max_screen_bytes=settings.max_screen_bytes,
            max_screen_pixels=settings.max_screen_pixels,
            max_context_bytes=settings.context_bytes,
            context_ttl_seconds=settings.context_ttl_s,
            queue_length=settings.queue_length,
        ),
    )
