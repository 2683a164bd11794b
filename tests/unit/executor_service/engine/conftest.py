"""A model that is plain Python behind the engine's real parts.

It answers with a text that depends on the prompt's ids, the gates and the vision output, so that a
mixed-up row shows, and it counts what it was asked.
"""

from __future__ import annotations

import time
import zlib
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from prometheus_client import CollectorRegistry
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from executor_service.core import ExpertIdentity
from executor_service.engine.contexts import ContextCache
from executor_service.engine.detokenizer import TokenBytes
from executor_service.engine.engine import Engine
from executor_service.engine.inputs import Tools
from executor_service.engine.kept import Kept
from executor_service.engine.metrics import EngineMetrics
from executor_service.engine.registry import ExpertRegistry
from executor_service.engine.scheduler import Scheduler
from executor_service.engine.work import Facts, Limits
from executor_service.engine.worker import Worker
from executor_service.model.experts import ExpertSet, LoadedExpert
from executor_service.model.prompt import BuiltPrompt, PromptBuilder
from service_chassis.errors import InvalidArgument

CONTROL = [
    "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|endoftext|>",
]  # fmt: skip
TEXT_DIM, VISION_DIM = 3, 2


class Shelf:
    """What lies at which path, for the fake loader to find."""

    def __init__(self):
        self._found: dict[Path, LoadedExpert | Exception] = {}

    def put(self, path, content, **fields):
        """Lay an adapter (its content stands for its digest) or a refusal at a path."""
        found = content
        if not isinstance(content, Exception):
            blank = {
                "label": None,
                "system_prompt": None,
                "task_types": (),
                "rank": 4,
                "matched_modules": 10,
                "targets_vision": False,
            }
            identity = ExpertIdentity("", content, 0)
            found = LoadedExpert(
                identity=identity, source=Path(path), weights={}, **{**blank, **fields}
            )
        self._found[Path(path)] = found
        return Path(path)

    def load(self, name, path, generation):
        found = self._found[path]
        if isinstance(found, Exception):
            raise found
        identity = ExpertIdentity(name, found.identity.digest, generation)
        return replace(found, identity=identity)


@dataclass
class FakeVision:
    look: str
    nbytes: int = 100


@dataclass
class FakePixels:
    data: bytes
    image_tokens: int = 3
    nbytes: int = 50


@dataclass
class FakeRow:
    """A prompt, its screen, and the shapes that the engine looks at."""

    prompt: BuiltPrompt
    vision: FakeVision

    @property
    def embeds(self):
        return torch.zeros(1, len(self.prompt.ids), 0)

    @property
    def positions(self):
        return torch.arange(len(self.prompt.ids)).expand(4, 1, -1)


@dataclass
class FakeSlots:
    """What is left of each slot's answer, and which slots were restored or cleared."""

    length: int = 220
    left: dict[int, list[int]] = field(default_factory=dict)
    restored: list[int] = field(default_factory=list)
    cleared: list[int] = field(default_factory=list)

    def save(self, slot, length):
        return SimpleNamespace(length=length, nbytes=10 * length)

    def restore(self, slot, prefix):
        self.restored.append(slot)

    def clear(self, slot):
        self.cleared.append(slot)


@dataclass
class FakeModel:
    """`fail` makes a call raise; a step takes `step_s`; `steps` says which slots each one ran."""

    answers: PromptBuilder
    length: int = 12
    calls: Counter[str] = field(default_factory=Counter)
    fail: dict[str, Exception] = field(default_factory=dict)
    steps: list[tuple[int, ...]] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    bad_slot: int | None = None
    features_nan: bool = False
    step_s: float = 0.0

    def _called(self, name):
        self.calls[name] += 1
        if name in self.fail:
            raise self.fail[name]

    def encode_vision(self, screens, routing):
        self._called("encode_vision")
        gates = "none" if routing is None else routing.gates[0].weights
        return [FakeVision(f"{screen.data!r} under {gates}") for screen in screens]

    def answer(self, prompt, vision, experts, gates):
        """The whole answer, as ids with the end of turn."""
        seen = f"{prompt.ids} {vision.look} {experts.digest} {gates}"
        text = f"{zlib.crc32(seen.encode()):010d}"[: self.length]
        return [*self.answers.encode_literal(text), self.answers.end_of_turn]

    def row(self, prompt, vision):
        return FakeRow(prompt, vision)

    def prefill(self, row, span, slots, slot, routing):
        """Hidden states are logits here."""
        self._called("prefill")
        self.spans.append(span)
        left = self.answer(row.prompt, row.vision, routing.experts, routing.gates[0])
        slots.left[slot] = left
        return torch.stack([self._logits(left[0])] * (span[1] - span[0]))

    def decode(self, rows, slots, experts):
        self._called("decode")
        time.sleep(self.step_s)
        self.steps.append(tuple(row.slot for row in rows))
        if self.bad_slot in self.steps[-1]:
            raise RuntimeError("device says: secret")
        logits = []
        for row in rows:
            left = slots.left[row.slot]
            assert row.token_id == left.pop(0), "the engine fed another row's token"
            logits.append(self._logits(left[0]))
        return torch.stack(logits)

    def logits(self, hidden):
        return hidden

    def log_probabilities(self, hidden, next_ids):
        self._called("log_probabilities")
        assert len(hidden) == len(next_ids)
        return [-float(token_id) for token_id in next_ids]

    def features(self, rows, spec):
        self._called("features")
        self.batches.append(len(rows))
        found = []
        for row in rows:
            text = torch.tensor([float(len(row.ids)), float(row.span[0]), float(row.span[1])])
            if self.features_nan:
                text[0] = float("nan")
            found.append(SimpleNamespace(text=text, vision=torch.tensor([1.0, 2.0])))
        return found

    def _logits(self, token_id):
        logits = torch.zeros(400)
        logits[token_id] = 1.0
        return logits


class FakeReader:
    """Reads anything but `bad`."""

    def __init__(self):
        self.reads = 0

    def read(self, data):
        self.reads += 1
        if data == b"bad":
            raise InvalidArgument("UNREADABLE_SCREEN", "no")
        return FakePixels(data)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Bytes and control tokens, nothing merged."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in CONTROL])
    return made


@pytest.fixture
def model(tokenizer) -> FakeModel:
    return FakeModel(PromptBuilder(SimpleNamespace(backend_tokenizer=tokenizer)))


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
async def registry(shelf):
    async def probe(experts, name):
        if "broken" in next(e for e in experts.experts if e.identity.name == name).task_types:
            raise InvalidArgument("PROBE_FAILED", "no")

    made = ExpertRegistry(
        ExpertSet([], {}, torch.device("cpu")), num_layers=2, load=shelf.load, probe=probe
    )
    yield made
    made.close()


@dataclass
class Bench:
    """An engine over the fakes, with its parts in reach."""

    engine: Engine
    model: FakeModel
    reader: FakeReader
    registry: ExpertRegistry
    scheduler: Scheduler
    worker: Worker
    contexts: ContextCache
    slots: FakeSlots
    shelf: Shelf
    counted: CollectorRegistry


@pytest.fixture
async def bench(model, registry, tokenizer, shelf, tmp_path):
    """Experts: a (blind), b (blind, own system prompt), v (adapts vision, own system prompt)."""
    await registry.load("a", shelf.put("a", "content a"))
    await registry.load("b", shelf.put("b", "content b", system_prompt="b's"))
    await registry.load("v", shelf.put("v", "content v", system_prompt="v's", targets_vision=True))
    scheduler = Scheduler(queue_length=4, slots=2)
    worker = Worker(scheduler)
    limits = Limits(200, 32, 1000, 1000, 1000, 60, 4, 2, 220, 64)
    spec = SimpleNamespace(digest="spec", text_dim=TEXT_DIM, vision_dim=VISION_DIM)
    contexts = ContextCache(max_bytes=1000, ttl_s=60)
    reader, slots, counted = FakeReader(), FakeSlots(), CollectorRegistry()
    tools = Tools(
        model=model,
        slots=slots,
        prefixes=Kept(1000),
        reader=reader,
        prompts=model.answers,
        vocabulary=TokenBytes(tokenizer),
        system_prompt="server's",
        max_prompt_tokens=200,
        chunk_tokens=64,
        metrics=EngineMetrics(
            counted, running=lambda: scheduler.running, waiting=lambda: scheduler.waiting
        ),
    )
    engine = Engine(
        facts=Facts("base", spec, "cpu", "float32", {}, limits),
        tools=tools,
        registry=registry,
        contexts=contexts,
        scheduler=scheduler,
        worker=worker,
        experts_root=tmp_path,
    )
    yield Bench(engine, model, reader, registry, scheduler, worker, contexts, slots, shelf, counted)
    await engine.close()
