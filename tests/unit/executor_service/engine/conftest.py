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
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from executor_service.core import ExpertIdentity
from executor_service.engine.contexts import ContextCache
from executor_service.engine.detokenizer import TokenBytes
from executor_service.engine.engine import Engine
from executor_service.engine.inputs import Tools
from executor_service.engine.registry import ExpertRegistry
from executor_service.engine.scheduler import Scheduler
from executor_service.engine.work import Facts, Limits
from executor_service.engine.worker import Worker
from executor_service.model.experts import ExpertSet, LoadedExpert
from executor_service.model.prompt import PromptBuilder
from service_chassis.errors import InvalidArgument

CONTROL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
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
class FakeModel:
    """`fail` makes a call raise; a step takes `step_s`; `rows` says whose step each one was."""

    answers: PromptBuilder
    length: int = 12
    calls: Counter[str] = field(default_factory=Counter)
    fail: dict[str, Exception] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)
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

    def answer(self, prompt, vision, routing):
        """The whole answer, as ids with the end of turn."""
        seen = f"{prompt.ids} {vision.look} {routing.experts.digest} {routing.gates[0]}"
        text = f"{zlib.crc32(seen.encode()):010d}"[: self.length]
        return [*self.answers.encode_literal(text), self.answers.end_of_turn]

    def prefill(self, prompt, vision, routing):
        self._called("prefill")
        left = self.answer(prompt, vision, routing)
        return self._logits(left[0]), left

    def step(self, token_id, state, routing):
        self._called("step")
        time.sleep(self.step_s)
        assert token_id == state.pop(0), "the engine fed another row's token"
        self.rows.append(str(id(state)))
        return self._logits(state[0])

    def score(self, prompt, completion, vision, routing):
        self._called("score")
        return -torch.arange(len(completion), dtype=torch.float32)

    def features(self, text_ids, text_span, vision, spec):
        self._called("features")
        text = torch.tensor([float(len(text_ids)), float(text_span[0]), float(text_span[1])])
        if self.features_nan:
            text[0] = float("nan")
        return SimpleNamespace(text=text, vision=torch.tensor([1.0, 2.0]))

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


@pytest.fixture
async def bench(model, registry, tokenizer, shelf, tmp_path):
    """Experts: a (blind), b (blind, own system prompt), v (adapts vision, own system prompt)."""
    await registry.load("a", shelf.put("a", "content a"))
    await registry.load("b", shelf.put("b", "content b", system_prompt="b's"))
    await registry.load("v", shelf.put("v", "content v", system_prompt="v's", targets_vision=True))
    scheduler = Scheduler(queue_length=4, slots=2)
    worker = Worker(scheduler)
    limits = Limits(200, 32, 1000, 1000, 1000, 60, 4)
    spec = SimpleNamespace(digest="spec", text_dim=TEXT_DIM, vision_dim=VISION_DIM)
    contexts = ContextCache(max_bytes=1000, ttl_s=60)
    reader = FakeReader()
    tools = Tools(
        model=model,
        reader=reader,
        prompts=model.answers,
        vocabulary=TokenBytes(tokenizer),
        system_prompt="server's",
        max_prompt_tokens=200,
        context_tokens=220,
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
    yield Bench(engine, model, reader, registry, scheduler, worker, contexts)
    await engine.close()
