"""The 8B's shape on one GPU: what gates cost, beside the ceilings of the card and beside PEFT.

    python benchmarks/h100.py [--json FILE] [--device cuda|cpu] [--small]

Needs no network and no checkpoint: base and experts are random. Knows PEFT's way to do the same
work; does not know services, schedulers or what experts are good for.

All sides run the same loop over the same slots and attention; what differs is the linears. A floor
is what the ceilings allow: weights read once at the copy bandwidth for a step of decoding (keys and
values not counted), products at the rate of a large matmul for a prompt (the tower not counted).
Each time is a median.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import peft
import torch
import transformers
from peft.tuners.lora import LoraLayer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from executor_service.core import ExpertIdentity, GateVector
from executor_service.model import gated
from executor_service.model.experts import LoadedExpert
from executor_service.model.features import FeatureRow
from executor_service.model.gated import DecodeRow, GatedModel, Routing, VisionOutput
from executor_service.model.mixture import LoraWeights
from executor_service.model.prompt import BuiltPrompt
from executor_service.model.screen import PixelInput
from executor_service.model.slots import Prefix, SlotCache
from executor_service.model.static import DecodeBackend
from executor_service.model.targets import LANGUAGE, find_targets

EXPERTS = 7
# Figure to the least (1) or the most (-1) that will do. Ratios are the worst of all sizes.
TARGETS = {
    "soft7_share_of_floor_decode_1": (0.80, 1),
    "soft7_over_bare_decode": (1.06, -1),
    "soft7_over_bare_prefill": (1.08, -1),
    "peft7_over_soft7_decode": (5.0, 1),
    "routed_over_manual_language_experts": (1.03, -1),
}


@dataclass(frozen=True)
class Scale:
    """Sizes: of the model, of what it is given (tokens, patches), and of the two ceilings."""

    text: dict[str, Any]
    vision: dict[str, Any]
    dtype: torch.dtype
    rank: int
    batches: tuple[int, ...]
    context: int
    prompts: tuple[int, ...]
    system: int
    instruction: int
    grid: tuple[int, int, int]
    answer: int
    chunk: int
    copy_bytes: int
    matmul: int
    repeats: int


# fmt: off
FULL = Scale(
    text={"vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 12_288,
          "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
          "head_dim": 128, "max_position_embeddings": 8192,
          "rope_parameters": {"rope_type": "default", "rope_theta": 5e6,
                              "mrope_section": [24, 20, 20], "mrope_interleaved": True}},
    vision={"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16,
            "out_hidden_size": 4096, "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [8, 16, 24]},
    dtype=torch.bfloat16, rank=16, batches=(1, 8, 32), context=1024, prompts=(1024, 2048, 4096),
    # The user's: a long system prompt and a screen of 1155 x 853 px.
    system=900, instruction=40, grid=(1, 54, 72), answer=32, chunk=512,
    copy_bytes=4 * 2**30, matmul=8192, repeats=20,
)
SMALL = Scale(
    text={"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96,
          "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
          "head_dim": 16, "max_position_embeddings": 512,
          "rope_parameters": {"rope_type": "default", "rope_theta": 5e6,
                              "mrope_section": [4, 2, 2], "mrope_interleaved": True}},
    vision={"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
            "out_hidden_size": 64, "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1, 2]},
    dtype=torch.float32, rank=4, batches=(1, 3), context=24, prompts=(16, 48),
    system=12, instruction=6, grid=(1, 4, 6), answer=4, chunk=16,
    copy_bytes=2**22, matmul=128, repeats=2,
)
# fmt: on


@dataclass(frozen=True)
class Side:
    """One way to run the model, and the elements of the experts' weights that it has to read."""

    name: str
    model: GatedModel
    routing: Routing
    extra: int = 0
    prepare: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Row:
    """One figure: `size` is answers at once, or tokens that run."""

    work: str
    side: str
    mode: str
    size: int
    ms: float
    floor_ms: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, write JSON.

    Args:
        argv: Flags; None for the process's own.

    Returns:
        0, whether or not the targets are met.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="a tiny shape: to try the script")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; try --device cpu --small")
    with torch.no_grad(), warnings.catch_warnings():
        # PEFT calls what transformers has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        report = Bench(SMALL if arguments.small else FULL, torch.device(arguments.device)).report()
    show(report)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


class Bench:
    """The sides, the ceilings, and what is measured of them."""

    def __init__(self, scale: Scale, device: torch.device) -> None:
        torch.manual_seed(0)
        self.scale, self.device, self.is_cuda = scale, device, device.type == "cuda"
        self.mode: DecodeBackend = "cuda_graph" if self.is_cuda else "static"
        base = random_base(scale, device)
        self.peft = peft_model(base, scale.rank)
        self.model = GatedModel(copy_of(base), tokenizer=None, base_digest="0" * 64)
        self.experts = self.model.expert_set(experts_of(self.peft, seeing=True))
        self.blind = self.model.expert_set(experts_of(self.peft, seeing=False))
        self.soft = GateVector(tuple(torch.rand(EXPERTS).softmax(0).tolist()))
        layers = base.model.language_model.layers
        self.layer_elements = sum(int(weight.numel()) for weight in layers.parameters())
        self.head_elements = int(base.lm_head.weight.numel())
        self.sides = {side.name: side for side in self._sides(base)}
        self.bandwidth, self.rate = self._ceilings()

    def _sides(self, base: Any) -> Iterator[Side]:
        top_1, zero = GateVector.one_hot(EXPERTS, 3), GateVector.zeros(EXPERTS)
        ranks = self.blind.stacks.nbytes // self.scale.dtype.itemsize
        bare, theirs = ungated(base), ungated(self.peft.get_base_model())
        nobody = Routing(bare.expert_set(), (GateVector(()),))
        yield Side("bare base", bare, nobody)
        yield Side("gated zero", self.model, Routing(self.experts, (zero,)))
        yield Side("top-1", self.model, Routing(self.experts, (top_1,)), ranks // EXPERTS)
        yield Side("soft-7", self.model, Routing(self.experts, (self.soft,)), ranks)
        for name, gates, extra in (
            ("PEFT 1", top_1, ranks // EXPERTS),
            ("PEFT 7", self.soft, ranks),
        ):
            yield Side(name, theirs, nobody, extra, partial(activate, self.peft, gates))

    def report(self) -> dict[str, Any]:
        """Everything, in the order in which it is measured."""
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()  # Without the buffers of the ceilings.
        sides = self.sides.values()
        rows = [row for side in track(sides, "decode") for row in self._decode(side)]
        rows += [row for side in track(sides, "prefill") for row in self._prefill(side)]
        rows += self._first_token()
        figures = {**ratios(rows, self.mode), **self._routed()}
        return {
            "device": torch.cuda.get_device_name() if self.is_cuda else "cpu",
            "dtype": str(self.scale.dtype),
            "versions": {part.__name__: part.__version__ for part in (torch, transformers, peft)},
            "copy_bytes_per_s": self.bandwidth,
            "matmul_flops_per_s": self.rate,
            "figures": figures | {"difference_from_peft": self._difference()},
            "targets": {
                key: {"bound": bound, "sign": sign, "met": sign * (figures[key] - bound) >= 0}
                for key, (bound, sign) in TARGETS.items()
            },
            "rows": [asdict(row) | {"share_of_floor": row.floor_ms / row.ms} for row in rows],
            "memory_bytes": {
                "base": sum(weight.nbytes for weight in self.model.base.parameters()),
                "experts": self.experts.stacks.nbytes,
                "slot of the context": self._slots(self.model, self.scale.context).nbytes,
                "peak": torch.cuda.max_memory_allocated()
                if self.is_cuda
                else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            },
        }

    def _median_ms(self, call: Callable[[], object]) -> float:
        times = []
        for _ in range(self.scale.repeats + 2):
            self._wait()
            begun = time.perf_counter()
            call()
            self._wait()
            times.append((time.perf_counter() - begun) * 1000)
        return statistics.median(times[2:])  # The first ones warm up and capture.

    def _wait(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def _ceilings(self) -> tuple[float, float]:
        """Bytes per second, read and written, and floating-point operations per second."""
        source = torch.zeros(self.scale.copy_bytes, dtype=torch.uint8, device=self.device)
        copy_ms = self._median_ms(partial(torch.empty_like(source).copy_, source))
        size = self.scale.matmul
        factor = torch.randn(size, size, dtype=self.scale.dtype, device=self.device)
        matmul_ms = self._median_ms(partial(torch.matmul, factor, factor))
        return 2000 * self.scale.copy_bytes / copy_ms, 2000 * size * size * size / matmul_ms

    def _decode_floor_ms(self, side: Side) -> float:
        elements = self.layer_elements + self.head_elements + side.extra
        return elements * int(self.scale.dtype.itemsize) / self.bandwidth * 1000

    def _prefill_floor_ms(self, side: Side, start: int, end: int) -> float:
        products = (self.layer_elements + side.extra) * (end - start) + self.head_elements
        # Query by key and weight by value; each token sees those before it and itself.
        names = ("num_attention_heads", "head_dim", "num_hidden_layers")
        heads, width, layers = (int(self.scale.text[name]) for name in names)
        attention = heads * width * layers * (end * end - start * start)
        return 2 * (products + attention) / self.rate * 1000

    def _slots(
        self, model: GatedModel, tokens: int, count: int = 1, mode: DecodeBackend = "eager"
    ) -> SlotCache:
        return model.slot_cache(slots=count, length=tokens + self.scale.answer, decode=mode)

    def _decode(self, side: Side) -> Iterator[Row]:
        """Steps of answers that all hold `context` tokens, as the engine runs them."""
        side.prepare()
        # A graph would not know that PEFT's active adapters have changed.
        modes: tuple[DecodeBackend, ...] = ("eager", self.mode)
        for mode in modes[:1] if side.name.startswith("PEFT") else modes:
            at, gates = self.scale.context, side.routing.gates[0]
            slots = self._slots(side.model, at, max(self.scale.batches), mode)
            for batch in self.scale.batches:
                rows = [DecodeRow(1 + slot, slot, at, at, gates) for slot in range(batch)]
                ms = self._median_ms(partial(step, side, rows, slots))
                yield Row("decode", side.name, mode, batch, ms, self._decode_floor_ms(side))

    def _prefill(self, side: Side) -> Iterator[Row]:
        """Prompts without a screen, each in one part."""
        side.prepare()
        slots = self._slots(side.model, max(self.scale.prompts))
        for tokens in self.scale.prompts:
            ms = self._median_ms(partial(prefill, side, tokens, slots))
            floor_ms = self._prefill_floor_ms(side, 0, tokens)
            yield Row("prefill", side.name, "eager", tokens, ms, floor_ms)

    def _difference(self) -> float:
        """Largest difference between our logits and PEFT's, by the largest of theirs."""
        errors, tokens = [], self.scale.prompts[0]
        for names in (("top-1", "PEFT 1"), ("soft-7", "PEFT 7")):
            logits = []
            for side in (self.sides[name] for name in names):
                side.prepare()
                logits.append(prefill(side, tokens, self._slots(side.model, tokens)))
            errors.append(float((logits[0] - logits[1]).abs().max() / logits[1].abs().max()))
        return max(errors)

    def _first_token(self) -> list[Row]:
        """Until the first token of a request whose seven experts adapt the language model alone."""
        request = Request(self.model, Routing(self.blind, (self.soft,)), self.scale, "eager")
        seen, end = request.look(), len(request.prompt.ids)
        request.run(seen, None, 1)
        prefix = request.slots.save(0, self.scale.system)
        rows = []
        for name, known, kept in (
            ("cold", None, None),
            ("vision reused", seen, None),
            ("prefix hit", None, prefix),
            ("both", seen, prefix),
        ):
            start = kept.length if kept else 0
            ms = self._median_ms(partial(request.run, known, kept, 1))
            floor_ms = self._prefill_floor_ms(self.sides["soft-7"], start, end)
            rows.append(Row("first token", name, "eager", end - start, ms, floor_ms))
        return rows

    def _routed(self) -> dict[str, float]:
        """A request behind its extraction of features, over the same request alone."""
        figures = {}
        for key, experts in (("language", self.blind), ("vision", self.experts)):
            routing = Routing(experts, (self.soft,))
            request = Request(self.model, routing, self.scale, self.mode)
            manual_ms = self._median_ms(partial(request.run, None, None, self.scale.answer))
            # What the features' tower made is of use only where no expert adapts the tower.
            routed_ms = self._median_ms(partial(request.routed, reuse=experts is self.blind))
            figures[f"routed_over_manual_{key}_experts"] = routed_ms / manual_ms
        return figures


class Request:
    """One request of the user's kind: a system prompt, a screen, an instruction, an answer."""

    def __init__(
        self, model: GatedModel, routing: Routing, scale: Scale, mode: DecodeBackend
    ) -> None:
        self.model, self.routing, self.scale = model, routing, scale
        vision = model.config.vision_config
        patches = scale.grid[1] * scale.grid[2]
        pixels = torch.randn(patches, 3 * vision.temporal_patch_size * vision.patch_size**2)
        image_tokens = patches // vision.spatial_merge_size**2
        self.screen = PixelInput(pixels, scale.grid, 0, 0, image_tokens)
        ids = some_ids(scale.system + image_tokens + scale.instruction)
        self.prompt = BuiltPrompt(ids, scale.system, image_tokens, scale.system)
        self.slots = model.slot_cache(slots=1, length=len(ids) + scale.answer, decode=mode)

    def look(self) -> VisionOutput:
        """The tower, under the request's gates."""
        [seen] = self.model.encode_vision([self.screen], self.routing)
        return seen

    def run(self, seen: VisionOutput | None, prefix: Prefix | None, tokens: int) -> None:
        """Look if nothing is held, prefill in parts as the engine does, answer greedily."""
        row, end = self.model.row(self.prompt, seen or self.look()), len(self.prompt.ids)
        if prefix:
            self.slots.restore(0, prefix)
        for at in range(prefix.length if prefix else 0, end, self.scale.chunk):
            span = (at, min(at + self.scale.chunk, end))
            hidden = self.model.prefill(row, span, self.slots, 0, self.routing)
        token = int(self.model.logits(hidden[-1]).argmax())
        position, [gates] = int(row.positions[1:].max()) + 1, self.routing.gates
        for at in range(tokens - 1):
            one = DecodeRow(token, 0, end + at, position + at, gates)
            [logits] = self.model.decode([one], self.slots, self.routing.experts)
            token = int(logits.argmax())

    def routed(self, *, reuse: bool) -> None:
        """Features first, as the router asks for them, then the answer."""
        [seen] = self.model.encode_vision([self.screen], None)
        count, spec = self.scale.instruction, self.model.feature_spec(text_layer=2)
        self.model.features([FeatureRow(some_ids(count), (0, count), seen)], spec)
        self.run(seen if reuse else None, None, self.scale.answer)


def random_base(scale: Scale, device: torch.device) -> Any:
    """A Qwen3-VL with random weights, made where it lives."""
    config = transformers.Qwen3VLConfig(text_config=scale.text, vision_config=scale.vision)
    kind: Any = transformers.Qwen3VLForConditionalGeneration
    with device:
        base = kind._from_config(config, dtype=scale.dtype, attn_implementation="sdpa")
    return base.eval().requires_grad_(False)


def copy_of(base: Any) -> Any:
    """Modules of its own over the base's weights."""
    return copy.deepcopy(base, {id(weight): weight for weight in base.parameters()})


def ungated(base: Any) -> GatedModel:
    """The same loop, slots and attention over modules that are left as they are."""
    with patch.object(gated, "find_targets", return_value={}):
        return GatedModel(base, tokenizer=None, base_digest="0" * 64)


def peft_model(base: Any, rank: int) -> Any:
    """PEFT's model with adapters of the user's kind, their weights in the base's dtype."""
    language = [name for name in find_targets(base) if name.startswith(LANGUAGE)]
    tower = [f"model.visual.blocks.{at}.attn.proj" for at in range(len(base.model.visual.blocks))]
    tower.append("model.visual.patch_embed.proj")
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=[*language, *tower],
        rank_pattern=dict.fromkeys(tower, rank // 2),
        alpha_pattern=dict.fromkeys(tower, rank),
    )
    model: Any = peft.get_peft_model(copy_of(base), config, "0", autocast_adapter_dtype=False)
    for at in range(1, EXPERTS):
        model.add_adapter(str(at), config, autocast_adapter_dtype=False)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.normal_(std=0.02)
    return model.eval()


def activate(model: Any, gates: GateVector) -> None:
    """Make PEFT's adapters with a gate active, each scaled by it."""
    model.base_model.set_adapter([str(at) for at in gates.active])
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for at in gates.active:
                module.set_scale(str(at), gates.weights[at])


def experts_of(model: Any, *, seeing: bool) -> Iterator[LoadedExpert]:
    """The same adapters as ours, with their tower's part or without."""
    layers: dict[str, Any] = {
        name: module
        for name, module in model.get_base_model().named_modules()
        if isinstance(module, LoraLayer) and (seeing or name.startswith(LANGUAGE))
    }
    for key in map(str, range(EXPERTS)):
        weights = {
            name: LoraWeights(
                module.lora_A[key].weight.flatten(1),
                module.lora_B[key].weight.flatten(1).t().contiguous(),
                module.scaling[key],
            )
            for name, module in layers.items()
        }
        identity, rank = ExpertIdentity(key, key, 1), max(pair.rank for pair in weights.values())
        yield LoadedExpert(identity, None, None, (), rank, len(weights), seeing, Path(), weights)


def some_ids(count: int) -> tuple[int, ...]:
    """Token ids, any will do."""
    return tuple(1 + at % 99 for at in range(count))


def step(side: Side, rows: Sequence[DecodeRow], slots: SlotCache) -> list[int]:
    """One token of each answer, on the host."""
    logits = side.model.decode(rows, slots, side.routing.experts)
    return [int(token) for token in logits.argmax(-1).tolist()]


def prefill(side: Side, tokens: int, slots: SlotCache) -> torch.Tensor:
    """Logits behind a prompt of text."""
    nothing = torch.zeros(0, int(side.model.config.text_config.hidden_size), device=slots.device)
    prompt = BuiltPrompt(some_ids(tokens), tokens, 0)
    row = side.model.row(prompt, VisionOutput(nothing, (), (1, 0, 0)))
    return side.model.logits(side.model.prefill(row, (0, tokens), slots, 0, side.routing)[-1])


def ratios(rows: Sequence[Row], mode: str) -> dict[str, float]:
    """The figures that have targets: ours in the best mode, PEFT's eager."""
    ms = {(row.work, row.side, row.mode, row.size): row.ms for row in rows}
    ours = [row for row in rows if row.side == "soft-7"]
    steps = [row for row in ours if row.work == "decode" and row.mode == mode]
    bare = {row: ms[row.work, "bare base", row.mode, row.size] for row in ours}
    theirs = {row: ms["decode", "PEFT 7", "eager", row.size] for row in steps}
    return {
        "soft7_share_of_floor_decode_1": steps[0].floor_ms / steps[0].ms,
        "soft7_over_bare_decode": max(row.ms / bare[row] for row in steps),
        "soft7_over_bare_prefill": max(row.ms / bare[row] for row in ours if row.work == "prefill"),
        "peft7_over_soft7_decode": min(theirs[row] / row.ms for row in steps),
    }


def show(report: dict[str, Any]) -> None:
    """Print the tables."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    ceilings = (
        "{device}, {dtype}: {copy_bytes_per_s:.3g} B/s copied, {matmul_flops_per_s:.3g} flop/s"
    )
    table = Table("work", "side", "mode", title=ceilings.format(**report), header_style="bold")
    for name in ("size", "ms", "tokens / s", "floor ms", "share of floor"):
        table.add_column(name, justify="right")
    for row in report["rows"]:
        numbers = (row["ms"], row["size"] / row["ms"] * 1000, row["floor_ms"])
        cells = [f"{number:.2f}" for number in numbers]
        words = (row["work"], row["side"], row["mode"], str(row["size"]))
        table.add_row(*words, *cells, f"{row['share_of_floor']:.1%}")
    console.print(table)
    table = Table("figure", "value", "target", "met", header_style="bold")
    for key, value in report["figures"].items():
        bound, sign = TARGETS.get(key, (0.0, 0))
        target = f"at {'least' if sign > 0 else 'most'} {bound}" if sign else "reported"
        met = "" if not sign else "yes" if report["targets"][key]["met"] else "no"
        table.add_row(key, f"{value:.3g}", target, met)
    for key, value in report["memory_bytes"].items():
        table.add_row(f"memory: {key}", f"{value / 2**30:.2f} GiB", "reported", "")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
