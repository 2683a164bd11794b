"""Puts an executor together from its settings and keeps it running.

Knows the order of starting and stopping; knows no rule of any room.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import grpc
import structlog
import torch
from prometheus_client import CollectorRegistry
from transformers.utils.logging import disable_progress_bar

from executor_service.engine.contexts import ContextCache
from executor_service.engine.detokenizer import TokenBytes
from executor_service.engine.engine import Engine
from executor_service.engine.failures import loading_expert
from executor_service.engine.inputs import Context, Tools
from executor_service.engine.kept import Kept
from executor_service.engine.metrics import EngineMetrics
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
from executor_service.model.slots import SlotCache
from executor_service.model.static import DecodeBackend
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

_log = structlog.get_logger()

NAME = "executor"
SERVICES = (EXECUTOR, EXPERT_ADMIN)


class ExecutorProcess:
    """The engine's place: empty while the model is loaded, then the engine.

    Args:
        settings: Checked settings.
        metrics: The registry that the engine's metrics join.
    """

    def __init__(self, settings: ExecutorSettings, metrics: CollectorRegistry) -> None:
        self._settings = settings
        self._metrics = metrics
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
            self._engine = await build_engine(self._settings, self._metrics)
        except NotLoadable as error:
            raise StartupError(str(error), exit_code=3) from error
        health.set_serving(True)
        names = [state.identity.name for state in self._engine.experts()]
        _log.info("serving", device=self._engine.facts.device, experts=names)
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
    metrics = ServerMetrics()
    process = ExecutorProcess(settings, metrics.registry)
    try:
        return await serve(
            settings=settings,
            name=NAME,
            register=process.register,
            services=SERVICES,
            auth_table=AUTH_TABLE,
            metrics=metrics,
            ready=process.ready,
        )
    finally:
        await process.close()


async def build_engine(
    settings: ExecutorSettings, registry: CollectorRegistry | None = None
) -> Engine:
    """Load the base and its experts on the worker's thread.

    Args:
        settings: Checked settings.
        registry: What its metrics join; None where nobody looks at them.

    Returns:
        An engine whose experts have all been probed.

    Raises:
        NotLoadable: The model or an expert cannot be used; the text is for the operator.
    """
    scheduler: Scheduler[Job] = Scheduler(
        queue_length=settings.queue_length,
        slots=settings.slots,
        features_batch=settings.features_batch,
    )
    # Before the model: a wrong path should not have to wait for its weights.
    locations = _find_experts(settings)
    worker = Worker(scheduler)
    metrics = EngineMetrics(
        registry or CollectorRegistry(),
        running=lambda: scheduler.running,
        waiting=lambda: scheduler.waiting,
    )
    try:
        model = await worker.call(lambda: _load_model(settings))
        experts = await _load_experts(model, worker, locations)
        tools = await worker.call(lambda: _tools(settings, model, metrics))
        return _assemble(settings, tools, experts, scheduler, worker)
    except BaseException:
        await worker.stop()
        raise


def _no_checkpoint(model: Path) -> str:
    return f"{model} holds no config.json; name a checkpoint directory with --model"


def _find_experts(settings: ExecutorSettings) -> list[ExpertLocation]:
    try:
        return discover_experts(
            settings.effective_experts_root, settings.lora_modules, lora_environment()
        )
    except ServiceError as error:
        raise NotLoadable(error.message) from error


def _load_model(settings: ExecutorSettings) -> GatedModel:
    has_cuda = torch.cuda.is_available()
    device = settings.device
    if device == "auto":
        device = "cuda" if has_cuda else "cpu"
    if device == "cuda" and not has_cuda:
        raise NotLoadable("torch finds no CUDA device here; use --device cpu or auto")
    dtype = settings.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    # Standard error holds one JSON line per event and nothing else.
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        return GatedModel.load(settings.model, device=device, dtype=getattr(torch, dtype))
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise NotLoadable(f"the model does not fit into the memory of {device}") from error


async def _load_experts(
    model: GatedModel, worker: Worker, locations: Sequence[ExpertLocation]
) -> ExpertRegistry:
    """Every expert of the start-up set, probed one by one, then all as one set."""
    loaded: list[LoadedExpert] = []
    for location in locations:
        try:
            with loading_expert():
                loaded.append(await worker.call(partial(load_expert, model, location)))
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
    tools: Tools,
    registry: ExpertRegistry,
    scheduler: Scheduler[Job],
    worker: Worker,
) -> Engine:
    contexts: ContextCache[Context] = ContextCache(
        max_bytes=settings.context_bytes, ttl_s=settings.context_ttl_s
    )
    return Engine(
        facts=_facts(settings, tools),
        tools=tools,
        registry=registry,
        contexts=contexts,
        scheduler=scheduler,
        worker=worker,
        experts_root=settings.effective_experts_root,
    )


def _tools(settings: ExecutorSettings, model: GatedModel, metrics: EngineMetrics) -> Tools:
    screens = ScreenLimits(
        max_bytes=settings.max_screen_bytes, max_pixels=settings.max_screen_pixels
    )
    try:
        reader = ScreenReader(settings.model, screens)
        prompts = PromptBuilder(model.tokenizer)
    except (OSError, ValueError) as error:
        raise NotLoadable(
            "tokenizer.json or preprocessor_config.json of the model is missing or not that of a "
            "Qwen3-VL; copy the checkpoint again"
        ) from error
    return Tools(
        model=model,
        slots=_slots(settings, model),
        prefixes=Kept(settings.prefix_bytes),
        reader=reader,
        prompts=prompts,
        vocabulary=TokenBytes(model.tokenizer.backend_tokenizer),
        system_prompt=settings.system_prompt,
        max_prompt_tokens=min(settings.max_prompt_tokens, _slot_tokens(settings, model)),
        chunk_tokens=settings.prefill_chunk_tokens,
        metrics=metrics,
    )


def _slot_tokens(settings: ExecutorSettings, model: GatedModel) -> int:
    wanted = settings.slot_tokens or settings.max_prompt_tokens + settings.max_new_tokens
    return min(wanted, int(model.config.text_config.max_position_embeddings))


def _slots(settings: ExecutorSettings, model: GatedModel) -> SlotCache:
    length, decode = _slot_tokens(settings, model), _decode(settings, model)
    try:
        return model.slot_cache(slots=settings.slots, length=length, decode=decode)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise NotLoadable(
            f"{settings.slots} slots of {length} tokens do not fit into the memory of "
            f"{model.device}; lower --slots or --slot-tokens"
        ) from error


def _decode(settings: ExecutorSettings, model: GatedModel) -> DecodeBackend:
    if settings.decode == "cuda_graph" and model.device.type != "cuda":
        raise NotLoadable(f"a model on {model.device} decodes without graphs; use --decode eager")
    return "eager" if settings.decode == "auto" else settings.decode


def _facts(settings: ExecutorSettings, tools: Tools) -> Facts:
    model = tools.model
    try:
        spec = model.feature_spec(
            text_layer=settings.feature_layer,
            text_pooling=settings.text_pooling,
            vision_source=settings.vision_source,
            vision_pooling=settings.vision_pooling,
        )
    except ValueError as error:
        raise NotLoadable(f"--feature-layer {settings.feature_layer}: {error}") from error
    return Facts(
        model=model.base_digest,
        spec=spec,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        backends={
            "attention": "sdpa",
            "gated": "stacked",
            "decode": _decode(settings, model),
            "key_values": "slots",
            "image_processor": "pil",
        },
        limits=Limits(
            max_prompt_tokens=tools.max_prompt_tokens,
            max_new_tokens=settings.max_new_tokens,
            max_screen_bytes=settings.max_screen_bytes,
            max_screen_pixels=settings.max_screen_pixels,
            max_context_bytes=settings.context_bytes,
            context_ttl_seconds=settings.context_ttl_s,
            queue_length=settings.queue_length,
            slots=settings.slots,
            slot_tokens=tools.slots.length,
            prefill_chunk_tokens=tools.chunk_tokens,
        ),
    )
