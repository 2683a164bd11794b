"""The real executor as a process, with a real (untrained) Qwen3-VL and real PEFT experts.

Every answer is compared with one that is worked out in this process, by transformers and PEFT.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from executor_service.core import ExpertIdentity, expert_set_digest
from molora.v1 import executor_pb2, executor_pb2_grpc, types_pb2
from molora_client import (
    AbortedError,
    AlreadyExistsError,
    AsyncMolora,
    ContextExpiredError,
    ContextRef,
    DecisionReason,
    FailedPreconditionError,
    FinishReason,
    Generation,
    InvalidArgumentError,
    MoloraError,
    NotFoundError,
    Prompt,
    RoutingMode,
    RoutingOptions,
    Sampling,
    Turn,
)
from tests.support.checkpoints import untrained_checkpoint
from tests.support.experts import write_expert
from tests.support.processes import Running, refused, running
from tests.support.reference import MixtureReference, PeftReference
from tests.support.services import bundle_for

# In every prompt of this file: it must not be found anywhere else.
CANARY = "Quillabeth-Vantongeren"
PROMPT = f"Click December 3 in the calendar of {CANARY}"
SAMPLES = Path(__file__).parents[2] / "miniature/samples/images"
SCREEN = (SAMPLES / "calendar_00000.png").read_bytes()
SYSTEM = "You click in calendars."
TOKENS = 10
SLOTS = 3
# Holds a few calendars, of 4 MB each.
CONTEXT_BYTES = 16 * 2**20
LONG = 400


@dataclass(frozen=True)
class Place:
    """The base, a root with two experts, and two more adapters below it that are not experts yet.

    `spare/blind` leaves the tower alone; `spare/other` is another calendar.
    """

    base: Path
    root: Path

    @property
    def experts(self) -> dict[str, Path]:
        return {name: self.root / name for name in ("calendar", "claim-window")}

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--model", str(self.base), "--experts-root", str(self.root))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    base, root = untrained_checkpoint(), tmp_path_factory.mktemp("executor") / "experts"
    calendar = {"label": 0, "system_prompt": SYSTEM, "task_types": ["click"]}
    write_expert(base, root / "calendar", rank=8, seed=1, **calendar)
    write_expert(base, root / "claim-window", rank=16, seed=2, label=1)
    write_expert(base, root / "spare/blind", rank=4, seed=3, vision=False)
    write_expert(base, root / "spare/other", rank=8, seed=4, **calendar)
    return Place(base, root)


@pytest.fixture(scope="module")
def server(place: Place) -> Iterator[Running]:
    """One executor for all tests; whoever changes its experts puts them back."""
    flags = ("--slots", str(SLOTS), "--context-bytes", str(CONTEXT_BYTES), "--log-level", "debug")
    log_file = place.root.parent / "executor.log"
    with running("executor_service", *place.flags, *flags, log_file=log_file) as server:
        yield server
        assert server.terminate() == 0
    for line in server.log.splitlines():
        assert json.loads(line)["service"] == "executor", "one JSON line per event, nothing else"
    assert CANARY not in server.log


@pytest.fixture
async def client(server: Running) -> AsyncIterator[AsyncMolora]:
    async with AsyncMolora(executor=server.address, timeout_s=60) as client:
        yield client


@pytest.fixture(scope="module")
def peft(place: Place) -> PeftReference:
    return PeftReference(place.base, place.experts)


@pytest.fixture(scope="module")
def mixture(place: Place) -> MixtureReference:
    return MixtureReference(place.base, place.experts)


async def ask(client: AsyncMolora, **routing: Any) -> Generation:
    return await client.generate(PROMPT, SCREEN, max_new_tokens=TOKENS, **routing)


async def until_free(client: AsyncMolora) -> None:
    """Wait until no request holds an expert."""
    deadline = time.monotonic() + 30
    while any(expert.in_use for expert in (await client.experts()).experts):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def fails(kind: type[MoloraError], reason: str, call: Any) -> MoloraError:
    with pytest.raises(kind) as caught:
        await call
    assert caught.value.reason == reason
    assert CANARY not in str(caught.value)
    return caught.value


class TestAnswers:
    async def test_one_expert_is_peft_s_single_adapter(
        self, client: AsyncMolora, peft: PeftReference
    ) -> None:
        for name, system in (("calendar", SYSTEM), ("claim-window", None)):
            answer = await ask(client, expert=name)
            assert answer.token_ids == peft.answer(name, system, PROMPT, SCREEN, TOKENS)
            assert answer.applied.gates == {name: 1.0}
            assert [expert.name for expert in answer.applied.experts] == [name]

    async def test_base_only_is_the_bare_base(
        self, client: AsyncMolora, peft: PeftReference
    ) -> None:
        answer = await ask(client, base_only=True)
        assert answer.token_ids == peft.answer(None, None, PROMPT, SCREEN, TOKENS)
        assert answer.applied.base_only
        assert (answer.applied.gates, answer.applied.experts) == ({}, ())

    @pytest.mark.parametrize("share", [0.5, 0.7, 0.3])
    async def test_soft_gates_are_the_mixture(
        self, client: AsyncMolora, mixture: MixtureReference, place: Place, share: float
    ) -> None:
        gates = {"calendar": share, "claim-window": 1 - share}
        answer = await ask(client, gates=gates)
        system = SYSTEM if share >= 0.5 else None
        assert answer.token_ids == mixture.answer(gates, system, PROMPT, SCREEN, TOKENS)
        assert answer.applied.gates == pytest.approx(gates)
        config = json.loads((place.base / "config.json").read_text())
        layers = dict.fromkeys(range(config["text_config"]["num_hidden_layers"]), gates)
        by_layer = await ask(client, gates=gates, layer_gates=layers)
        assert by_layer.token_ids == answer.token_ids
        assert set(by_layer.applied.layer_gates) == set(layers)

    async def test_mask_then_mode(self, client: AsyncMolora) -> None:
        calendar, claim = [await ask(client, expert=name) for name in ("calendar", "claim-window")]
        gates = {"calendar": 0.4, "claim-window": 0.6}
        assert calendar.token_ids != claim.token_ids
        top = await ask(client, gates=gates, mode=RoutingMode.TOP1)
        assert (top.token_ids, top.applied.gates) == (claim.token_ids, {"claim-window": 1.0})
        assert top.applied.mode is RoutingMode.TOP1
        masked = await ask(client, gates=gates, masked_experts=("claim-window",))
        assert (masked.token_ids, masked.applied.gates) == (calendar.token_ids, {"calendar": 1.0})
        assert masked.applied.masked_experts == ("claim-window",)
        both = await ask(client, gates=gates, mode=RoutingMode.TOP2)
        assert both.applied.gates == pytest.approx(gates)

    async def test_neighbours_change_nothing(self, client: AsyncMolora) -> None:
        choices: list[Mapping[str, Any]] = [
            {"expert": "calendar"},
            {"gates": {"calendar": 0.5, "claim-window": 0.5}},
            {"base_only": True},
            {"expert": "claim-window"},
            {"gates": {"calendar": 0.7, "claim-window": 0.3}},
        ]
        alone = [(await ask(client, **choice)).token_ids for choice in choices]
        assert len(set(alone)) == len(alone)
        together = await asyncio.gather(*(ask(client, **choice) for choice in choices * 2))
        assert [answer.token_ids for answer in together] == alone * 2

    async def test_score_is_the_log_probability(
        self, client: AsyncMolora, peft: PeftReference
    ) -> None:
        scored = await client.score(
            PROMPT, SCREEN, "[498, 385]", expert="calendar", return_prompt_token_ids=True
        )
        ids = list(scored.token_ids)
        expected = peft.score("calendar", SYSTEM, PROMPT, SCREEN, ids)
        assert scored.log_probabilities == pytest.approx(expected, abs=1e-4)
        assert len(scored.prompt_token_ids) == scored.usage.prompt_tokens
        assert scored.applied.gates == {"calendar": 1.0}

    async def test_an_answer_comes_in_pieces_and_with_its_facts(self, client: AsyncMolora) -> None:
        asked = {
            "expert": "calendar",
            "max_new_tokens": 4 * TOKENS,
            "sampling": Sampling(temperature=20.0, seed=7),
        }
        whole = await client.generate(PROMPT, SCREEN, **asked)
        stream = client.generate_stream(PROMPT, SCREEN, **asked)
        pieces = [piece async for piece in stream]
        assert len(pieces) > 1
        assert "".join(pieces) == stream.result.text == whole.text
        assert whole.token_ids == stream.result.token_ids
        assert whole.finish_reason is FinishReason.LENGTH
        assert whole.usage.completion_tokens == 4 * TOKENS
        assert whole.usage.image_tokens == 156
        assert whole.timings.total_ms >= whole.timings.time_to_first_token_ms > 0

    async def test_a_system_prompt_is_computed_once(self, client: AsyncMolora) -> None:
        prompt = Prompt(PROMPT, system=f"You click where {CANARY} says, and nowhere else.")
        asked = {"gates": {"calendar": 0.25, "claim-window": 0.75}, "max_new_tokens": TOKENS}
        first = await client.generate(prompt, SCREEN, **asked)
        again = await client.generate(prompt, SCREEN, **asked)
        assert first.usage.cached_prompt_tokens == 0 < again.usage.cached_prompt_tokens
        assert again.token_ids == first.token_ids
        other = await client.generate(prompt, SCREEN, base_only=True, max_new_tokens=TOKENS)
        assert other.usage.cached_prompt_tokens == 0, "its keys and values are others"

    async def test_log_probabilities_are_those_of_peft(
        self, client: AsyncMolora, peft: PeftReference
    ) -> None:
        sampling = Sampling(temperature=2.0, seed=3, return_log_probabilities=True)
        answer = await ask(client, expert="calendar", sampling=sampling)
        ids = list(answer.token_ids)
        expected = peft.score("calendar", SYSTEM, PROMPT, SCREEN, ids)
        assert answer.log_probabilities == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert not (await ask(client, expert="calendar")).log_probabilities


class TestContexts:
    async def test_a_held_screen_answers_as_its_bytes_do(
        self, client: AsyncMolora, peft: PeftReference
    ) -> None:
        features = await client.features(PROMPT, SCREEN)
        info = await client.server_info()
        spec = info.feature_spec
        assert (len(features.text), len(features.vision)) == (spec.text_dim, spec.vision_dim)
        assert features.feature_spec == spec.digest
        assert (features.model, features.expert_set) == (info.model, info.expert_set)
        again = await client.features(PROMPT, features.context)
        assert (again.text, again.vision) == (features.text, features.vision)
        assert again.context.context_id == features.context.context_id
        held = dataclasses.replace(features.context, data=None)
        for name, system, reused in (("calendar", SYSTEM, False), (None, None, True)):
            routing = {"expert": name} if name else {"base_only": True}
            answer = await client.generate(PROMPT, held, max_new_tokens=TOKENS, **routing)
            assert answer.token_ids == peft.answer(name, system, PROMPT, SCREEN, TOKENS)
            assert answer.applied.vision_reused is reused

    async def test_an_expert_that_leaves_the_tower_alone_reuses_the_vision_output(
        self, client: AsyncMolora
    ) -> None:
        await client.load_expert("blind", "spare/blind")
        context = (await client.features(PROMPT, SCREEN)).context
        fresh = await ask(client, expert="blind")
        held = await client.generate(PROMPT, context, expert="blind", max_new_tokens=TOKENS)
        await client.unload_expert("blind")
        assert held.token_ids == fresh.token_ids
        assert (held.applied.vision_reused, fresh.applied.vision_reused) == (True, False)

    async def test_what_is_not_held_any_more(self, client: AsyncMolora) -> None:
        first = (await client.features(PROMPT, SCREEN)).context
        without_bytes = dataclasses.replace(first, data=None)
        for other in sorted(SAMPLES.glob("login-window_*.png")):  # more than CONTEXT_BYTES holds
            await client.features(PROMPT, other.read_bytes())
        for context in (without_bytes, ContextRef("never-given-out")):
            expired = client.generate(PROMPT, context, expert="calendar")
            await fails(ContextExpiredError, "CONTEXT_EXPIRED", expired)
        # The SDK has the bytes and sends them.
        answer = await client.generate(PROMPT, first, expert="calendar", max_new_tokens=TOKENS)
        assert answer.token_ids == (await ask(client, expert="calendar")).token_ids


class TestBadInput:
    @pytest.mark.parametrize(
        "screen", [b"not an image", SCREEN[:200], SCREEN[:60] + b"\0" * 40 + SCREEN[100:]]
    )
    async def test_a_screen_that_cannot_be_read(self, client: AsyncMolora, screen: bytes) -> None:
        for call in (
            client.features(PROMPT, screen),
            client.generate(PROMPT, screen, expert="calendar"),
            client.score(PROMPT, screen, "x", expert="calendar"),
        ):
            with pytest.raises(InvalidArgumentError) as caught:
                await call
            assert caught.value.reason in ("UNREADABLE_SCREEN", "UNSUPPORTED_SCREEN_FORMAT")

    @pytest.mark.parametrize(
        ("kind", "reason", "routing"),
        [
            (NotFoundError, "UNKNOWN_EXPERT", {"expert": "nobody"}),
            (NotFoundError, "UNKNOWN_EXPERT", {"gates": {"calendar": 0.5, "nobody": 0.5}}),
            (InvalidArgumentError, "GATES_SUM", {"gates": {"calendar": 0.5, "claim-window": 0.4}}),
            (InvalidArgumentError, "GATES_SUM", {"gates": {}}),
            (
                InvalidArgumentError,
                "NOTHING_LEFT",
                {"expert": "calendar", "masked_experts": ("calendar",)},
            ),
            (
                InvalidArgumentError,
                "LAYER_GATES_INCOMPLETE",
                {"gates": {"calendar": 1.0}, "layer_gates": {0: {"calendar": 1.0}}},
            ),
            (AbortedError, "EXPERT_SET_CHANGED", {"expert": "calendar", "expert_set": "f" * 64}),
        ],
    )
    async def test_routing_that_cannot_be(
        self,
        client: AsyncMolora,
        kind: type[MoloraError],
        reason: str,
        routing: Mapping[str, Any],
    ) -> None:
        await fails(kind, reason, client.generate(PROMPT, SCREEN, **routing))
        await fails(kind, reason, client.score(PROMPT, SCREEN, "x", **routing))

    async def test_no_routing_at_all(self, server: Running) -> None:
        """The SDK refuses this itself, so it is sent without it."""
        bare = executor_pb2.GenerateRequest(
            prompt=types_pb2.Prompt(text=PROMPT), screen=types_pb2.Screen(data=SCREEN)
        )
        async with grpc.aio.insecure_channel(server.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await executor_pb2_grpc.ExecutorServiceStub(channel).Generate(bare).read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    async def test_what_does_not_fit(self, client: AsyncMolora) -> None:
        long = client.generate(PROMPT * 500, SCREEN, expert="calendar")
        await fails(InvalidArgumentError, "PROMPT_TOO_LONG", long)
        many = client.generate(PROMPT, SCREEN, expert="calendar", max_new_tokens=100_000)
        await fails(InvalidArgumentError, "BAD_MAX_NEW_TOKENS", many)
        await fails(InvalidArgumentError, "EMPTY_PROMPT", client.features(" ", SCREEN))


class TestExperts:
    async def test_what_is_loaded(self, client: AsyncMolora) -> None:
        listed, info = await client.experts(), await client.server_info()
        calendar, claim = listed.experts
        assert (calendar.name, calendar.label, calendar.rank) == ("calendar", 0, 8)
        assert (claim.name, claim.label, claim.rank) == ("claim-window", 1, 16)
        assert calendar.task_types == ("click",)
        # Five decoder layers with seven linears each; four tower blocks and the Conv3d.
        assert [one.matched_modules for one in listed.experts] == [5 * 7 + 4 + 1] * 2
        assert all(one.targets_vision for one in listed.experts)
        identities = [ExpertIdentity(one.name, one.digest, 1) for one in info.experts]
        assert listed.expert_set == info.expert_set == expert_set_digest(identities)
        assert (info.device, info.dtype) == ("cpu", "float32")
        choices = {"attention", "gated", "decode", "image_processor", "key_values"}
        assert set(info.backends) == choices
        assert (info.limits.slots, info.limits.slot_tokens) == (SLOTS, 4096)
        assert info.limits.max_context_bytes == CONTEXT_BYTES

    async def test_a_loaded_expert_changes_the_set(self, client: AsyncMolora) -> None:
        before = (await client.experts()).expert_set
        loaded = await client.load_expert("blind", "spare/blind")
        assert (loaded.expert.rank, loaded.expert.targets_vision) == (4, False)
        assert loaded.expert_set != before
        stale = client.generate(PROMPT, SCREEN, expert="calendar", expert_set=before)
        error = await fails(AbortedError, "EXPERT_SET_CHANGED", stale)
        assert error.metadata["expert_set"] == loaded.expert_set
        assert (await ask(client, expert="blind")).applied.expert_set == loaded.expert_set
        assert (await client.unload_expert("blind")).expert_set == before
        await fails(NotFoundError, "UNKNOWN_EXPERT", ask(client, expert="blind"))
        assert (await ask(client, expert="calendar", expert_set=before)).token_ids

    async def test_reload_changes_the_answer_and_back(self, client: AsyncMolora) -> None:
        before = await ask(client, expert="calendar")
        [generation] = [one.generation for one in before.applied.experts]
        changed = await client.reload_expert(
            "calendar", path="spare/other", expected_generation=generation
        )
        assert changed.expert.generation == generation + 1
        other = await ask(client, expert="calendar")
        assert other.token_ids != before.token_ids
        assert other.applied.experts[0].digest == changed.expert.digest
        late = client.reload_expert("calendar", path="calendar", expected_generation=generation)
        await fails(AbortedError, "GENERATION_CHANGED", late)
        back = await client.reload_expert(
            "calendar", path="calendar", expected_generation=generation + 1
        )
        assert back.expert.generation == generation + 2
        after = await ask(client, expert="calendar")
        assert after.token_ids == before.token_ids
        assert after.applied.expert_set == before.applied.expert_set

    async def test_what_is_refused_changes_nothing(self, client: AsyncMolora, place: Place) -> None:
        shutil.copytree(place.root / "spare/blind", place.root / "spare/half")
        (place.root / "spare/half/adapter/adapter_model.safetensors").unlink()
        before = await client.experts()
        for kind, reason, call in (
            (NotFoundError, "NO_ADAPTER", client.load_expert("half", "spare/half")),
            (NotFoundError, "NO_ADAPTER", client.load_expert("none", "spare/none")),
            (InvalidArgumentError, "BAD_ADAPTER_PATH", client.load_expert("out", "../experts")),
            (InvalidArgumentError, "BAD_EXPERT_NAME", client.load_expert("../x", "spare/blind")),
            (AlreadyExistsError, "EXPERT_EXISTS", client.load_expert("calendar", "spare/other")),
            (AlreadyExistsError, "CONTENT_LOADED", client.load_expert("twin", "calendar")),
            (NotFoundError, "UNKNOWN_EXPERT", client.unload_expert("nobody")),
        ):
            await fails(kind, reason, call)
        assert await client.experts() == before

    async def test_unload_waits_for_whoever_holds_it(self, client: AsyncMolora) -> None:
        await client.load_expert("blind", "spare/blind")
        long = {"expert": "blind", "max_new_tokens": LONG}
        undisturbed = await client.generate(PROMPT, SCREEN, **long)
        stream = client.generate_stream(PROMPT, SCREEN, **long)
        await anext(aiter(stream))
        unloading = asyncio.ensure_future(client.unload_expert("blind"))
        assert (await stream.read_to_end()).token_ids == undisturbed.token_ids
        assert (await unloading).expert.in_use == 0


class TestSlots:
    async def test_a_cancelled_request_frees_its_slot(self, client: AsyncMolora) -> None:
        streams = [
            client.generate_stream(PROMPT, SCREEN, expert="calendar", max_new_tokens=LONG)
            for _ in range(SLOTS)
        ]
        for stream in streams:
            await anext(aiter(stream))
        waiting = asyncio.ensure_future(ask(client, base_only=True))
        for _ in range(2 * TOKENS):  # in which it would have been done
            await anext(aiter(streams[1]))
        assert not waiting.done()
        streams[0].cancel()
        answer = await waiting
        # The others are at it still: it was the cancelled one's slot.
        assert (await client.experts()).experts[0].in_use == SLOTS - 1
        assert answer.token_ids == (await ask(client, base_only=True)).token_ids
        for stream in streams[1:]:
            stream.cancel()
        await until_free(client)


class TestPrivacy:
    async def test_nothing_of_a_request_is_logged_or_counted(
        self, client: AsyncMolora, server: Running
    ) -> None:
        said = {word: f"{CANARY}-{word}" for word in ("text", "system", "turn", "answer", "stop")}
        prompt = Prompt(said["text"], said["system"], (Turn("user", said["turn"]),))
        stop = Sampling(stop=(said["stop"],))
        answer = await client.generate(
            prompt, SCREEN, expert="calendar", max_new_tokens=TOKENS, sampling=stop
        )
        await client.score(prompt, SCREEN, said["answer"], base_only=True)
        await client.features(prompt, SCREEN)
        wrong = Prompt(said["text"], None, (Turn(CANARY, said["turn"]),))
        await fails(InvalidArgumentError, "UNKNOWN_ROLE", ask_about(client, wrong, SCREEN))
        broken = ask_about(client, prompt, CANARY.encode())
        await fails(InvalidArgumentError, "UNSUPPORTED_SCREEN_FORMAT", broken)
        unknown = client.generate(prompt, SCREEN, expert=CANARY)
        with pytest.raises(NotFoundError):
            await unknown
        metrics = await asyncio.to_thread(read_metrics, server)
        assert 'grpc_method="Generate"' in metrics
        for output in (server.log, metrics):
            assert answer.request_id in output or output is metrics
            for secret in (CANARY, answer.text, str(list(answer.token_ids)), SCREEN[:8].hex()):
                assert secret not in output


def read_metrics(server: Running) -> str:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics") as page:
        return str(page.read().decode())


async def ask_about(client: AsyncMolora, prompt: Prompt, screen: bytes) -> Generation:
    return await client.generate(prompt, screen, expert="calendar", max_new_tokens=1)


class TestGrpcurl:
    def _call(self, server: Running, method: str, request: Mapping[str, Any]) -> str:
        grpcurl = Path(sys.executable).parent / "grpcurl"
        done = subprocess.run(
            [grpcurl, "-plaintext", "-d", "@", server.address, method],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout + done.stderr

    async def test_a_manual_override_as_an_operator_types_it(
        self, server: Running, client: AsyncMolora
    ) -> None:
        context = (await client.features(PROMPT, SCREEN)).context
        request = {
            "prompt": {"text": PROMPT},
            "screen": {"context_id": context.context_id},
            "expert": "calendar",
            "max_new_tokens": TOKENS,
        }
        method = "molora.v1.ExecutorService/Generate"
        output = await asyncio.to_thread(self._call, server, method, request)
        assert '"completed"' in output
        assert '"finish_reason": "FINISH_REASON_LENGTH"' in output
        refused = await asyncio.to_thread(self._call, server, method, {**request, "expert": "x"})
        assert "NotFound" in refused
        assert "UNKNOWN_EXPERT" in refused


class TestProcess:
    """Starting and stopping. The command line decides the exit code, standard error says why."""

    @pytest.mark.parametrize(
        ("flags", "code", "said"),
        [
            (("--model", "/nowhere"), 3, "/nowhere holds no config.json; name a checkpoint"),
            (("--context-bytes", str(2**32)), 2, "--context-bytes"),
        ],
    )
    def test_a_setting_that_cannot_be(self, flags: tuple[str, ...], code: int, said: str) -> None:
        done = refused("executor_service", *flags)
        assert (done.returncode, done.stdout) == (code, "")
        assert said in done.stderr

    def test_no_directory_of_experts(self, place: Place) -> None:
        done = refused("executor_service", "--model", str(place.base), "--experts-root", "/nowhere")
        assert done.returncode == 3
        assert "/nowhere is no directory of experts" in done.stderr

    def test_an_expert_without_its_weights(self, place: Place, tmp_path: Path) -> None:
        shutil.copytree(place.root / "calendar", tmp_path / "calendar")
        (tmp_path / "calendar/adapter/adapter_model.safetensors").unlink()
        flags = ("--model", str(place.base), "--experts-root", str(tmp_path))
        done = refused("executor_service", *flags)
        assert done.returncode == 3
        assert "expert calendar: The directory lacks an adapter file" in done.stderr

    @pytest.mark.parametrize("file", ["preprocessor_config.json", "model.safetensors"])
    def test_half_a_checkpoint(self, place: Place, tmp_path: Path, file: str) -> None:
        base = tmp_path / "base"
        shutil.copytree(place.base, base)
        (base / file).unlink()
        done = refused("executor_service", "--model", str(base))
        assert done.returncode == 3
        assert "copy the checkpoint again" in done.stderr

    async def test_sigterm_lets_a_running_answer_end(self, place: Place, tmp_path: Path) -> None:
        """The experts come by flag and by environment here, so none can be loaded later."""
        flags = ("--model", str(place.base), "--lora-modules", f"calendar={place.root}/calendar")
        environ = {"LORA_CLAIM": str(place.root / "claim-window")}
        log_file = tmp_path / "executor.log"
        with running("executor_service", *flags, log_file=log_file, environ=environ) as server:
            async with AsyncMolora(executor=server.address, timeout_s=60) as client:
                names = [expert.name for expert in (await client.experts()).experts]
                assert names == ["calendar", "claim-window"]
                load = client.load_expert("blind", "spare/blind")
                await fails(FailedPreconditionError, "NO_EXPERTS_ROOT", load)
                long = {"expert": "calendar", "max_new_tokens": LONG}
                undisturbed = await client.generate(PROMPT, SCREEN, **long)
                stream = client.generate_stream(PROMPT, SCREEN, **long)
                await anext(aiter(stream))
                stopping = asyncio.ensure_future(asyncio.to_thread(server.terminate))
                assert (await stream.read_to_end()).token_ids == undisturbed.token_ids
                assert await stopping == 0


@pytest.fixture(scope="module")
def router(place: Place, server: Running) -> Iterator[Running]:
    """A real router before the executor; its head is one matrix and knows nothing."""
    bundle = asyncio.run(bundle_for(server.address, place.root.parent / "router"))
    flags = ("--bundle", str(bundle), "--executor", server.address, "--executor-check-s", "0.2")
    log_file = place.root.parent / "router.log"
    with running("router_service", *flags, log_file=log_file) as router:
        yield router
        assert router.terminate() == 0
    assert CANARY not in router.log


class TestBehindTheRouter:
    @pytest.fixture
    async def both(self, router: Running, server: Running) -> AsyncIterator[AsyncMolora]:
        async with AsyncMolora(router.address, server.address, timeout_s=60) as client:
            yield client

    async def test_route_then_generate(self, both: AsyncMolora) -> None:
        routed = await both.route(PROMPT, SCREEN)
        assert routed.reason is DecisionReason.ROUTER
        assert set(routed.probabilities) == {"calendar", "claim-window"}
        answer = await both.generate(
            PROMPT,
            routed.context,
            gates=routed.gates,
            expert_set=routed.expert_set,
            max_new_tokens=TOKENS,
        )
        assert answer.applied.gates == routed.gates
        assert answer.token_ids == (await ask(both, gates=routed.gates)).token_ids

    async def test_predict(self, both: AsyncMolora) -> None:
        soft = RoutingOptions(mode=RoutingMode.SOFT)
        predicted = await both.predict(PROMPT, SCREEN, options=soft, max_new_tokens=TOKENS)
        gates = predicted.routed.gates
        assert len(gates) == 2
        assert predicted.applied.gates == pytest.approx(gates)
        assert predicted.applied.expert_set == predicted.routed.expert_set
        assert predicted.generation.token_ids == (await ask(both, gates=gates)).token_ids
        override = RoutingOptions(expert_override="claim-window")
        forced = await both.predict(PROMPT, SCREEN, options=override, max_new_tokens=TOKENS)
        assert forced.applied.gates == {"claim-window": 1.0}
        alone = await ask(both, expert="claim-window")
        assert forced.generation.token_ids == alone.token_ids

    async def test_another_expert_under_a_known_name_stops_the_router(
        self, both: AsyncMolora
    ) -> None:
        [calendar, _] = (await both.experts()).experts
        changed = await both.reload_expert(
            "calendar", path="spare/other", expected_generation=calendar.generation
        )
        await fails(FailedPreconditionError, "EXPERT_CHANGED", both.route(PROMPT, SCREEN))
        await both.reload_expert(
            "calendar", path="calendar", expected_generation=changed.expert.generation
        )
        deadline = time.monotonic() + 30
        while not (await both.router_info()).serving:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert (await both.route(PROMPT, SCREEN)).expert_set == (await both.experts()).expert_set
