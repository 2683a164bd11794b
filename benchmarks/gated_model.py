"""What gates cost: our layers beside PEFT's, in one process, on the same random Qwen3-VL.

    python benchmarks/gated_model.py [--json FILE] [--seconds S]

Knows PEFT's ways to do the same work; does not know services, screens or what experts are good for.

Every side runs transformers' own forward over the same ids, without an image and without a cache:
with one token that is a step of decoding less its attention over the past, which no side changes.
All sides share one base's weights in memory and read the same adapters from disk. Each race first
shows that both sides give the same logits. Then they run in turn, ours, theirs, ours, theirs, so
that a slow minute slows both, and each round gives one ratio of times. A cell's figure is the
median of its rounds; a key's figure is the median of its cells.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft.tuners.lora import LoraLayer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from executor_service.core import GateVector
from executor_service.model.experts import ExpertLocation, LoadedExpert
from executor_service.model.gated import GatedModel
from executor_service.model.loading import read_expert

HIDDEN, LAYERS, VOCABULARY = 512, 8, 512
EXPERTS, MANY_EXPERTS, RANK = 7, 32, 16
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOLERANCE = 1e-4
MIN_ROUNDS = 5

Cell = tuple[int, int]  # tokens, rows
Side = Callable[[torch.Tensor], torch.Tensor]  # ids [rows, tokens] to logits
CELLS: tuple[Cell, ...] = ((1, 1), (1, 4), (1, 8), (512, 1), (512, 4), (512, 8))


@dataclass(frozen=True)
class Race:
    """Two sides that do the same work, and what their ratio is to be.

    Attributes:
        key: Its name in the JSON.
        ours: The side whose time is above the line.
        peer: The side below it.
        target: Bounds of the ratio, both included; None where there is no promise.
        cells: The shapes of input it is run with.
    """

    key: str
    ours: Side
    peer: Side
    target: tuple[float, float] | None
    cells: tuple[Cell, ...] = CELLS

    def badness(self, ratio: float) -> float:
        """Grows with the time of ours; where the target has two ends, with the distance from 1."""
        return abs(math.log(ratio)) if self.target and self.target[0] else ratio


@dataclass(frozen=True)
class Timing:
    """One cell: both medians, and the median of the rounds' ratios."""

    tokens: int
    rows: int
    rounds: int
    ours_ms: float
    peer_ms: float
    ratio: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, write JSON.

    Args:
        argv: Flags; None for the process's own.

    Returns:
        0, whether or not the targets are met.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each cell of a race")
    arguments = parser.parse_args(argv)
    # PEFT calls what transformers has deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning)
    with tempfile.TemporaryDirectory() as root, torch.no_grad():
        races = build_races(Path(root))
    timings: dict[str, list[Timing]] = {}
    for race in track(races, description="racing"):
        timings[race.key] = [run(race, cell, arguments.seconds) for cell in race.cells]
    report = summary(races, timings)
    show(races, report)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


# --- the sides ----------------------------------------------------------------------------------


def build_races(root: Path) -> list[Race]:
    """Both implementations of the same experts, paired.

    Args:
        root: An empty directory for the adapters' files; not needed afterwards.
    """
    torch.manual_seed(0)
    base = random_base()
    directories = write_adapters(base, root)
    model = GatedModel(copy_of(base), tokenizer=None, base_digest="0" * 64)
    experts = [read_expert(model, ExpertLocation(name, path)) for name, path in directories.items()]
    seven = dict(list(directories.items())[:EXPERTS])
    eight = dict(list(directories.items())[: EXPERTS + 1])
    soft = GateVector(tuple(torch.rand(EXPERTS).softmax(0).tolist()))
    one_hot = GateVector.one_hot(EXPERTS, 3)
    distinct = [GateVector.one_hot(len(eight), row) for row in range(len(eight))]
    soft_seven = gated_side(model, experts[:EXPERTS], [soft])
    top_1_of = {
        count: gated_side(model, experts[:count], [GateVector.one_hot(count, 1)])
        for count in (2, MANY_EXPERTS)
    }
    return [
        Race("soft7_vs_peft7", soft_seven, peft_soft(base, seven, soft), (0, 0.55)),
        Race(
            "mixed8_vs_peft_adapter_names",
            gated_side(model, experts[: len(eight)], distinct),
            peft_side(base, eight, adapter_names=list(eight)),
            (0, 0.40),
            cells=((1, len(eight)),),
        ),
        Race(
            "onehot_vs_peft_single",
            gated_side(model, experts[:EXPERTS], [one_hot]),
            peft_side(base, dict([list(seven.items())[3]])),
            (0, 1.05),
        ),
        Race(
            "zero_vs_base",
            gated_side(model, experts[:EXPERTS], [GateVector.zeros(EXPERTS)]),
            forward_of(base),
            (0, 1.02),
        ),
        Race("top1_k32_vs_k2", top_1_of[MANY_EXPERTS], top_1_of[2], (0.90, 1.10)),
        Race("soft7_vs_peft_xlora", soft_seven, peft_xlora(base, seven, soft), None),
    ]


def random_base() -> Any:
    """A Qwen3-VL of the 8B's proportions in the language model, with the least of a tower."""
    config = transformers.Qwen3VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": 3 * HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": HIDDEN // 8,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000.0,
                "mrope_section": [12, 10, 10],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
    )
    base: Any = transformers.Qwen3VLForConditionalGeneration(config)
    return base.eval().requires_grad_(False)


def copy_of(base: Any) -> Any:
    """Modules of its own over the base's weights, so that no side's lie better in memory."""
    return copy.deepcopy(base, {id(weight): weight for weight in base.parameters()})


def write_adapters(base: Any, root: Path) -> dict[str, Path]:
    """Adapters as PEFT saves them, with weights that matter; directories by name."""
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LINEARS)
    adapted = peft.get_peft_model(copy_of(base), config)
    directories = {f"expert-{at:02}": root / f"{at:02}" for at in range(MANY_EXPERTS)}
    for directory in directories.values():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.02)
        adapted.save_pretrained(str(directory))
    return directories


def gated_side(
    model: GatedModel, experts: Sequence[LoadedExpert], gates: Sequence[GateVector]
) -> Side:
    """Ours, as `GatedModel` runs it: one gate vector for all rows, or one per row."""
    held = model.expert_set(experts)

    def run_gated(ids: torch.Tensor) -> torch.Tensor:
        with model.state.applied(held.text_updates(tuple(gates))):
            logits: torch.Tensor = model.base(input_ids=ids, use_cache=False).logits
            return logits

    return run_gated


def forward_of(model: Any, **extra: Any) -> Side:
    """The forward of a base, or of what PEFT made of it."""

    def run_forward(ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=ids, use_cache=False, **extra).logits
        return logits

    return run_forward


def peft_model(base: Any, directories: dict[str, Path]) -> Any:
    """PEFT's model with every adapter loaded; the first is active."""
    [(first, path), *others] = directories.items()
    model = peft.PeftModel.from_pretrained(copy_of(base), path, adapter_name=first)
    for name, path in others:
        model.load_adapter(path, adapter_name=name)
    return model.eval()


def peft_side(base: Any, directories: dict[str, Path], **extra: Any) -> Side:
    """PEFT with the first adapter, or with `adapter_names`, one per row."""
    model = peft_model(base, directories)
    # Without `adapter_names` a caller may leave out PEFT's own wrapper, which is the quicker way.
    return forward_of(model if extra else model.get_base_model(), **extra)


def peft_soft(base: Any, directories: dict[str, Path], gates: GateVector) -> Side:
    """PEFT with all adapters active, each scaled by its gate."""
    model = peft_model(base, directories)
    model.base_model.set_adapter(list(directories))
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, gate in zip(directories, gates.weights, strict=True):
                module.set_scale(name, gate)
    return forward_of(model.get_base_model())


def peft_xlora(base: Any, directories: dict[str, Path], gates: GateVector) -> Side:
    """PEFT's X-LoRA, whose classifier is set so that it gives these gates to every token."""
    paths = {str(at): str(path) for at, path in enumerate(directories.values())}
    config = peft.XLoraConfig(hidden_size=HIDDEN, adapters=paths)
    model: Any = peft.get_peft_model(copy_of(base), config)
    last = model.base_model.internal_xlora_classifier.layers[-1]
    last.weight.zero_()
    last.bias.copy_(torch.tensor([math.log(gate) for gate in gates.weights]))
    return forward_of(model)


# --- the clock ----------------------------------------------------------------------------------


@torch.no_grad()
def run(race: Race, cell: Cell, seconds: float) -> Timing:
    """Races both sides over one shape of input.

    Raises:
        AssertionError: They do not give the same logits.
    """
    tokens, rows = cell
    ids = torch.randint(VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(0))
    ours, theirs = race.ours(ids), race.peer(ids)
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    assert error <= TOLERANCE, f"{race.key}, {cell}: the sides differ by {error:.1e}"
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(times) < MIN_ROUNDS or time.perf_counter() < end:
        times.append((timed_ms(race.ours, ids), timed_ms(race.peer, ids)))
    return Timing(
        tokens,
        rows,
        len(times),
        statistics.median(mine for mine, _ in times),
        statistics.median(its for _, its in times),
        statistics.median(mine / its for mine, its in times),
    )


def timed_ms(side: Side, ids: torch.Tensor) -> float:
    """How long one forward takes, in milliseconds."""
    begun = time.perf_counter()
    side(ids)
    return (time.perf_counter() - begun) * 1000


# --- the report ---------------------------------------------------------------------------------


def summary(races: Sequence[Race], timings: dict[str, list[Timing]]) -> dict[str, Any]:
    """Every key's median and worst cell, the targets and whether they are met, and all cells."""
    figures: dict[str, float] = {}
    targets: dict[str, dict[str, Any]] = {}
    for race in races:
        ratios = [cell.ratio for cell in timings[race.key]]
        figures[race.key] = statistics.median(ratios)
        figures[f"{race.key}_worst"] = max(ratios, key=race.badness)
        if race.target:
            low, high = race.target
            met = low <= figures[race.key] <= high
            targets[race.key] = {"at_least": low, "at_most": high, "met": met}
    return {
        **figures,
        "targets": targets,
        "cells": {key: [vars(cell) for cell in cells] for key, cells in timings.items()},
        "machine": {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "peft": peft.__version__,
            "transformers": transformers.__version__,
        },
    }


def show(races: Sequence[Race], report: dict[str, Any]) -> None:
    """Print the ratios: keys down, cells across."""
    columns = [f"{tokens} x {rows}" for tokens, rows in CELLS]
    table = Table("ours / peer", *columns, "median", "worst", "target", "met", header_style="bold")
    table.title = "ratios of times; tokens x rows"
    for column in table.columns[1:]:
        column.justify = "right"
    for race in races:
        found = {
            (cell["tokens"], cell["rows"]): cell["ratio"] for cell in report["cells"][race.key]
        }
        ratios = [f"{found[cell]:.2f}" if cell in found else "" for cell in CELLS]
        headline = [f"{report[race.key]:.3f}", f"{report[f'{race.key}_worst']:.3f}"]
        table.add_row(race.key, *ratios, *headline, *verdict(race, report))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def verdict(race: Race, report: dict[str, Any]) -> tuple[str, str]:
    """The target in words, and whether it is met."""
    if race.target is None:
        return "none", ""
    low, high = race.target
    words = f"{low:.2f} to {high:.2f}" if low else f"at most {high:.2f}"
    return words, "yes" if report["targets"][race.key]["met"] else "no"


if __name__ == "__main__":
    sys.exit(main())
