"""The engine against transformers' `generate`, in one process: throughput, first tokens, stalls.

    python benchmarks/engine.py [--json FILE] [--requests N] [--rounds N]

Two models: the miniature, and random weights 512 wide and 8 layers deep. Both with experts of
random weights, as the user's trainer would target them: `blind` ones adapt the language model
alone, the others the vision tower too. Peers run in turns, and each figure is a median of ratios.

Routed requests are what the router's process asks of this one: ExtractFeatures, then Generate on
the context. The router's head and the network are not in it; `molora bench` has them.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from executor_service.core import RoutingChoice
from executor_service.engine.engine import Engine
from executor_service.engine.work import (
    Completed,
    FeaturesAsk,
    GenerateAsk,
    Instruction,
    SamplingParams,
    ScreenSource,
    TextDelta,
)
from executor_service.model.prompt import PromptBuilder
from executor_service.model.screen import ScreenReader
from executor_service.server import build_engine
from executor_service.settings import ExecutorSettings
from training.lora import lora_config
from training.miniature.checkpoint import write_untrained

MINIATURE = Path(__file__).resolve().parents[1] / "miniature"
CALENDAR = (MINIATURE / "samples/images/calendar_00005.png").read_bytes()
CLAIM_WINDOW = (MINIATURE / "samples/images/edit-claim-window_00005.jpg").read_bytes()
STREAMS = 8
NEW_TOKENS = 64
PREFIX_TOKENS = 900
BLIND, SEEING = ("blind-0", "blind-1", "blind-2", "blind-3"), "seeing"
TARGETS = {
    "throughput8_vs_sequential_hf": (3.0, "at least"),
    "prefix_ttft_ratio": (0.35, "at most"),
    "routed_vs_manual": (1.15, "at most"),
}

Figures = dict[str, float]


@dataclass(frozen=True)
class Subject:
    """A model and its experts: `blind` by name, `seeing` adapts the tower too."""

    name: str
    checkpoint: Path
    experts: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, write JSON.

    Args:
        argv: Flags; None for the process's own.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--requests", type=int, default=10_000, help="for the memory figure")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs for each ratio")
    arguments = parser.parse_args(argv)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    report: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        for number, subject in enumerate(subjects(Path(folder))):
            # What leaks, leaks in any model: once is enough, and the smallest is the quickest.
            requests = 0 if number else arguments.requests
            figures = asyncio.run(measure(subject, arguments.rounds, requests))
            show(subject.name, figures)
            report[subject.name] = figures
    report |= {key: report["miniature"][key] for key in (*TARGETS, "routed_vs_manual_vision")}
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def machine() -> dict[str, Any]:
    """What ran this."""
    return {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def subjects(folder: Path) -> list[Subject]:
    """The miniature, and a random model made here."""
    wide = folder / "random-512"
    corpus = ["Click December 3 in the calendar", "Where is row 3", "user assistant system"] * 50
    write_untrained(wide, corpus, seed=0)
    config = json.loads((wide / "config.json").read_text())
    config["text_config"] |= {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
    }
    config["vision_config"]["out_hidden_size"] = 512
    (wide / "config.json").write_text(json.dumps(config))
    (wide / "model.safetensors").unlink()
    torch.manual_seed(0)
    loaded = transformers.AutoConfig.from_pretrained(wide)
    transformers.Qwen3VLForConditionalGeneration(loaded).save_pretrained(wide)
    made = []
    for name, checkpoint in (("miniature", MINIATURE / "base"), ("random-512", wide)):
        experts = folder / f"{name}-experts"
        for seed, expert in enumerate((*BLIND, SEEING)):
            write_expert(checkpoint, experts / expert, seed=seed, vision=expert == SEEING)
        made.append(Subject(name, checkpoint, experts))
    return made


def write_expert(checkpoint: Path, directory: Path, *, seed: int, vision: bool) -> None:
    """A rank-16 adapter of random weights, strong enough to change answers."""
    base = plain_base(checkpoint)
    config = lora_config(base, 16)
    if not vision:
        config.exclude_modules = r".*\.visual\..*"
        config.rank_pattern, config.alpha_pattern = {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(base, config)
    noise = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.03, generator=noise)
    adapted.save_pretrained(str(directory / "adapter"))


def plain_base(checkpoint: Path) -> Any:
    """The checkpoint as transformers loads it."""
    model: Any = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32
    )
    return model.eval()


async def measure(subject: Subject, rounds: int, requests: int) -> Figures:
    """Every figure of one model; none of memory if `requests` is 0."""
    settings = ExecutorSettings(
        model=subject.checkpoint,
        experts_root=subject.experts,
        device="cpu",
        slots=STREAMS,
        max_prompt_tokens=2048,
        slot_tokens=2560,
    )
    engine = await build_engine(settings)
    try:
        return {
            **await throughput(engine, subject, rounds),
            **await prefix(engine, rounds),
            **await routing(engine, rounds),
            **await stalls(engine),
            **(await memory(engine, requests) if requests else {}),
        }
    finally:
        await engine.close()


async def throughput(engine: Engine, subject: Subject, rounds: int) -> Figures:
    """Eight streams at once against eight calls of `generate` one after the other."""
    peer = Peer(subject)
    # The miniature's base was taught to write these; of most other texts it makes a word or two.
    asks = [
        ask(f"Write left_click at [{101 * n}, 300]", expert=BLIND[n % len(BLIND)])
        for n in range(1, STREAMS + 1)
    ]
    ratios, ours_per_s, theirs_per_s = [], [], []
    tokens = 0
    for _ in track(range(rounds), description="throughput"):
        begun = time.perf_counter()
        theirs = [peer.answer(one) for one in asks]
        their_s = time.perf_counter() - begun
        begun = time.perf_counter()
        answers = await asyncio.gather(*(answer(engine, one) for one in asks))
        our_s = time.perf_counter() - begun
        if [ids for ids, _ in answers] != theirs:
            raise RuntimeError("both sides must give the same tokens, or the race means nothing")
        tokens = sum(len(ids) for ids in theirs)
        ours_per_s.append(tokens / our_s)
        theirs_per_s.append(tokens / their_s)
        ratios.append(their_s / our_s)
    return {
        "throughput8_vs_sequential_hf": statistics.median(ratios),
        "tokens_per_answer": tokens / STREAMS,
        "tokens_per_s": statistics.median(ours_per_s),
        "tokens_per_s_hf": statistics.median(theirs_per_s),
    }


async def prefix(engine: Engine, rounds: int) -> Figures:
    """Time to first token behind a long system prompt, its keys and values kept or not."""
    held = await context(engine)
    ratios, hits_ms = [], []
    for number in track(range(rounds + 1), description="prefix"):
        system = long_system(engine, number)
        one = ask("Click December 3", held, system=system, expert=BLIND[0], tokens=4)
        miss_ms, hit_ms = [await first_token_ms(engine, one) for _ in range(2)]
        if number:  # The first pair warms up.
            ratios.append(hit_ms / miss_ms)
            hits_ms.append(hit_ms)
    return {
        "prefix_ttft_ratio": statistics.median(ratios),
        "ttft_hit_ms": statistics.median(hits_ms),
    }


async def routing(engine: Engine, rounds: int) -> Figures:
    """Features and then an answer on the context, against the answer alone."""
    figures, numbers = {}, itertools.count()
    for key, expert in (("routed_vs_manual", BLIND[0]), ("routed_vs_manual_vision", SEEING)):
        manual = ask("Click December 3", expert=expert)

        async def routed(manual: GenerateAsk = manual) -> None:
            extracted = await engine.extract(FeaturesAsk(manual.instruction, manual.screen), None)
            await answer(engine, replace(manual, screen=screen(extracted.context_id)))

        ratios = []
        for number in range(4 * rounds + 1):
            # A screen that is held would spare the extraction its tower: each has its own bytes.
            first, second = (
                replace(manual, screen=ScreenSource(data=variant(next(numbers)))) for _ in range(2)
            )
            manual_s = await timed_s(lambda one=first: answer(engine, one))  # type: ignore[misc]
            routed_s = await timed_s(lambda one=second: routed(one))  # type: ignore[misc]
            if number:
                ratios.append(routed_s / manual_s)
        figures[key] = statistics.median(ratios)
    return figures


async def stalls(engine: Engine) -> Figures:
    """Gaps between the tokens of four running answers while a 1155x853 screen is prefilled."""
    quiet: list[float] = []
    busy: list[float] = []
    prefilling = asyncio.Event()

    async def stream(number: int) -> None:
        one = ask(f"Write left_click at [500, {101 * number}]", expert=BLIND[number], tokens=400)
        while True:
            last_s = 0.0
            async for event in engine.generate(one, None):
                now_s = time.perf_counter()
                if last_s and isinstance(event, TextDelta):
                    (busy if prefilling.is_set() else quiet).append((now_s - last_s) * 1000)
                last_s = now_s

    streams = [asyncio.ensure_future(stream(number)) for number in range(4)]
    await asyncio.sleep(0.3)
    for number in range(5):
        prefilling.set()
        large = ask(f"Open row {number}", ScreenSource(data=CLAIM_WINDOW), expert=SEEING, tokens=1)
        await answer(engine, large)
        prefilling.clear()
        await asyncio.sleep(0.1)
    for one in streams:
        one.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    return {
        "inter_token_p50_ms": percentile(quiet, 0.5),
        "inter_token_p99_while_prefilling_ms": percentile(busy, 0.99),
        "inter_token_gaps_while_prefilling": float(len(busy)),
    }


async def memory(engine: Engine, requests: int) -> Figures:
    """Growth of the process over many requests, the first tenth not counted."""
    before = 0
    for number in track(range(0, requests, STREAMS), description="memory"):
        if number <= requests // 10:
            before = rss_bytes()
        # Asked for each time: a context ends by itself, and the whole takes longer than one lives.
        held = await context(engine)
        asks = [
            ask(f"Click {number + n}", held, expert=BLIND[n % len(BLIND)], tokens=2)
            for n in range(STREAMS)
        ]
        await asyncio.gather(*(answer(engine, one) for one in asks))
    return {
        "rss_growth_mb": (rss_bytes() - before) / 1e6,
        "rss_requests": float(requests),
        "rss_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


class Peer:
    """transformers' own model with PEFT's adapters, one request at a time."""

    def __init__(self, subject: Subject) -> None:
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(subject.checkpoint)
        self._prompts = PromptBuilder(self._tokenizer)
        self._reader = ScreenReader(subject.checkpoint)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            paths = {name: subject.experts / name / "adapter" for name in BLIND}
            base = plain_base(subject.checkpoint)
            self._model: Any = PeftModel.from_pretrained(
                base, paths[BLIND[0]], adapter_name=BLIND[0]
            )
            for name in BLIND[1:]:
                self._model.load_adapter(paths[name], adapter_name=name)
        self._model.eval()

    @torch.no_grad()
    def answer(self, one: GenerateAsk) -> tuple[int, ...]:
        """Greedy token ids, without the end of turn."""
        pixels = self._reader.read(one.screen.data)
        prompt = self._prompts.build(
            system=None, history=(), text=one.instruction.text, image_tokens=pixels.image_tokens
        )
        ids = torch.tensor([prompt.ids])
        image = torch.zeros_like(ids)
        image[0, prompt.image_start : prompt.image_start + prompt.image_tokens] = 1
        self._model.set_adapter(str(one.choice.expert))
        generated = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=image.int(),
            pixel_values=pixels.pixel_values,
            image_grid_thw=torch.tensor([pixels.grid_thw]),
            do_sample=False,
            max_new_tokens=one.max_new_tokens,
        )
        found = generated[0, ids.shape[1] :].tolist()
        end = self._prompts.end_of_turn
        return tuple(found[: found.index(end)] if end in found else found)


def ask(
    text: str,
    source: ScreenSource | None = None,
    *,
    expert: str,
    tokens: int = NEW_TOKENS,
    system: str = "",
) -> GenerateAsk:
    """A greedy request for one expert."""
    return GenerateAsk(
        instruction=Instruction(text, system),
        screen=source or ScreenSource(data=CALENDAR),
        choice=RoutingChoice(expert=expert),
        expert_set=None,
        max_new_tokens=tokens,
        sampling=SamplingParams(),
    )


def screen(context_id: str) -> ScreenSource:
    """A held screen."""
    return ScreenSource(context_id=context_id)


async def context(engine: Engine) -> ScreenSource:
    """The calendar, held."""
    source = ScreenSource(data=CALENDAR)
    extracted = await engine.extract(FeaturesAsk(Instruction("Click"), source), None)
    return screen(extracted.context_id)


def variant(number: int) -> bytes:
    """The calendar with one pixel of its own."""
    image = Image.open(io.BytesIO(CALENDAR)).convert("RGB")
    image.putpixel((0, 0), (number % 256, number // 256 % 256, 0))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def long_system(engine: Engine, number: int) -> str:
    """A system prompt of at least 900 tokens that no other number has."""
    prompts = engine._tools.prompts
    line = f"Rule {number}: point at the middle of what you are asked for. "
    system = ""
    while len(prompts.encode_literal(system)) < PREFIX_TOKENS:
        system += line
    return system


async def answer(engine: Engine, one: GenerateAsk) -> tuple[tuple[int, ...], Completed]:
    """Token ids of a whole answer, and its end."""
    ids: list[int] = []
    async for event in engine.generate(one, None):
        if isinstance(event, Completed):
            return tuple(ids), event
        ids += event.token_ids
    raise RuntimeError("a stream without `completed`")


async def first_token_ms(engine: Engine, one: GenerateAsk) -> float:
    """As the engine counts it, from admission."""
    _, completed = await answer(engine, one)
    return completed.timings.time_to_first_token_ms


async def timed_s(call: Callable[[], Awaitable[Any]]) -> float:
    """Seconds that an awaitable takes."""
    begun = time.perf_counter()
    await call()
    return time.perf_counter() - begun


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of them lies; NaN of none."""
    ordered = sorted(values)
    return ordered[int(share * (len(ordered) - 1))] if ordered else float("nan")


def rss_bytes() -> int:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def show(name: str, figures: Figures) -> None:
    """Print the table of one model."""
    table = Table(name, "figure", "target", header_style="bold")
    for key, value in figures.items():
        target, rule = TARGETS.get(key, (None, ""))
        table.add_row(key, f"{value:.3f}", f"{rule} {target}" if target is not None else "")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
